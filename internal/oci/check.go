package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/zcstore/zcstore/models/manifest"
)

// Finding is something a check found.
type Finding struct {
	What    string // "index", "version", "blob"
	Name    string // name:tag or a digest; empty for the directory itself
	Problem string
	Of      string // the blob, when several versions may have it
	Note    bool   // no damage: something that goes by itself or does no harm
}

// Report is what a check found.
type Report struct {
	Findings []Finding
	Entries  []Entry                      // of the index, when it can be read
	Whole    map[manifest.Digest]*Version // versions all of whose blobs have their digests, whether named or not
	Blobs    int
	Bytes    uint64 // that were read and hashed
	BadIndex bool
	Newer    bool // the index was written by a newer release: there is nothing to rebuild
}

// Check reads a data directory that no daemon serves, hashes every blob, and changes nothing. Errors: *LockedError, and what
// keeps it from reading at all.
func Check(ctx context.Context, path string, opt Options) (*Report, error) {
	l, err := openDir(path, opt, false)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.check(ctx)
}

func (l *Layout) check(ctx context.Context) (*Report, error) {
	r := &Report{Whole: map[manifest.Digest]*Version{}}
	b, err := l.readSmall(ocispec.ImageIndexFile, MaxIndexBytes)
	if err == nil {
		var ix *Index
		if ix, err = ParseIndex(b); err == nil {
			l.id, r.Entries, l.foreign = ix.ID, ix.Entries, ix.Foreign
		}
	}
	if err != nil {
		r.BadIndex, r.Newer = true, errors.Is(err, ErrNewer)
		r.damage("index", "", "%v", missing(err, "index.json"))
	}
	if err := checkLayoutFile(l.readSmall(ocispec.ImageLayoutFile, 4<<10)); err != nil {
		r.damage("index", "", "%v", missing(err, "oci-layout"))
	}
	if err := l.listBlobs(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	bad, images, err := l.hashAll(ctx, r)
	if err != nil {
		return nil, err
	}
	told := map[manifest.Digest]bool{} // blobs
	seen := map[digest.Digest]bool{}
	for _, e := range r.Entries {
		if !seen[e.image.Digest] { // a version once, whatever its tags
			seen[e.image.Digest] = true
			l.checkEntry(r, e, bad, told)
		}
	}
	for _, v := range images {
		if len(l.missingOf(v, bad)) == 0 {
			r.Whole[v.Digest] = v
			l.versions[v.Digest] = v
		}
	}
	for _, d := range slices.SortedFunc(maps.Keys(bad), func(a, b manifest.Digest) int { return strings.Compare(a.Hex(), b.Hex()) }) {
		if !told[d] {
			r.damage("blob", d.String(), "%v", bad[d])
		}
	}
	if !r.BadIndex {
		for i := range r.Entries { // damaged ones may use anything
			if r.Whole[r.Entries[i].Version] == nil {
				return r, nil
			}
		}
		if used, complete := l.usedBy(r.Entries); complete {
			n, size := 0, int64(0)
			for d, s := range l.present {
				if !used[d] {
					n, size = n+1, size+s
				}
			}
			if n > 0 {
				r.Findings = append(r.Findings, Finding{What: "blob", Problem: fmt.Sprintf("%d blobs (%d bytes) that nothing names: they go at the next start", n, size), Note: true})
			}
		}
	}
	return r, nil
}

func missing(err error, name string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is missing", name)
	}
	return err
}

func (r *Report) damage(what, name, format string, args ...any) {
	r.Findings = append(r.Findings, Finding{What: what, Name: name, Problem: fmt.Sprintf(format, args...)})
}

// usedBy is what the entries' versions and the foreign descriptors need.
func (l *Layout) usedBy(entries []Entry) (map[manifest.Digest]bool, bool) {
	all := l.versions
	l.versions = map[manifest.Digest]*Version{}
	for _, e := range entries {
		if v := all[e.Version]; v != nil {
			l.versions[e.Version] = v
		}
	}
	used, complete := l.usedLocked()
	l.versions = all
	return used, complete
}

// hashAll hashes every blob, on all cores. It gives why blobs are bad, and the image manifests among the good ones.
func (l *Layout) hashAll(ctx context.Context, r *Report) (bad map[manifest.Digest]error, images []*Version, err error) {
	bad = map[manifest.Digest]error{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := make(chan manifest.Digest)
	for range runtime.GOMAXPROCS(0) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for d := range next {
				n, v, err := l.hashBlob(d)
				mu.Lock()
				r.Blobs++
				r.Bytes += uint64(n)
				if err != nil {
					bad[d] = err
				}
				if v != nil {
					images = append(images, v)
				}
				mu.Unlock()
			}
		}()
	}
feed:
	for d := range l.present {
		select {
		case next <- d:
		case <-ctx.Done():
			break feed
		}
	}
	close(next)
	wg.Wait()
	return bad, images, ctx.Err()
}

// hashBlob reads a blob. v is set when it is an image manifest of ours.
func (l *Layout) hashBlob(d manifest.Digest) (n int64, v *Version, err error) {
	f, size, err := l.openFile(blobPath(d))
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	h := sha256.New()
	var head bytes.Buffer
	small := size <= MaxImageBytes
	w := io.Writer(h)
	first := make([]byte, 1)
	if n, _ := f.ReadAt(first, 0); n == 1 && first[0] == '{' && small {
		w = io.MultiWriter(h, &head)
	}
	n, err = io.Copy(w, f)
	if err != nil {
		return n, nil, err
	}
	var got manifest.Digest
	h.Sum(got[:0])
	if got != d {
		return n, nil, errors.New("its bytes do not have its digest")
	}
	if head.Len() > 0 {
		image := descriptorOf(ocispec.MediaTypeImageManifest, head.Bytes())
		image.ArtifactType = ArtifactType
		v, _ = ParseImage(image, head.Bytes())
	}
	return n, v, nil
}

// missingOf lists the blobs of a version that are not there whole.
func (l *Layout) missingOf(v *Version, bad map[manifest.Digest]error) (out []problem) {
	for _, d := range v.blobs() {
		sum, _ := fromOCI(d.Digest)
		size, ok := l.present[sum]
		switch {
		case !ok:
			out = append(out, problem{sum, "is missing"})
		case bad[sum] != nil:
			out = append(out, problem{sum, "is damaged"})
		case size != d.Size:
			out = append(out, problem{sum, fmt.Sprintf("has %d bytes of %d", size, d.Size)})
		}
	}
	return out
}

type problem struct {
	blob manifest.Digest
	what string
}

func (l *Layout) checkEntry(r *Report, e Entry, bad map[manifest.Digest]error, told map[manifest.Digest]bool) {
	sum, err := fromOCI(e.image.Digest)
	if err == nil {
		var b []byte
		if b, err = l.readBlob(sum, e.image.Size, MaxImageBytes); err == nil {
			var v *Version
			if v, err = ParseImage(e.image, b); err == nil {
				l.checkVersion(r, e, v, bad, told)
				return
			}
		}
	}
	told[sum] = true
	r.damage("version", e.Ref(), "its image manifest cannot be read: %v", err)
}

// checkVersion reports what is wrong with a version, and notes in told which bad blobs that was.
func (l *Layout) checkVersion(r *Report, e Entry, v *Version, bad map[manifest.Digest]error, told map[manifest.Digest]bool) {
	if e.Version != (manifest.Digest{}) && v.Digest != e.Version {
		r.damage("version", e.Ref(), "the index says %s, its image manifest %s", e.Version.Short(), v.Digest.Short())
		return
	}
	list := l.missingOf(v, bad)
	if len(list) == 0 {
		return
	}
	m, _, err := l.Manifest(v)
	for _, p := range list {
		told[p.blob] = true
		problem := fmt.Sprintf("blob %s %s", p.blob.Short(), p.what)
		if err == nil {
			if name := tensorOf(m, v, p.blob); name != "" {
				problem = name + ": " + problem
			}
		}
		r.Findings = append(r.Findings, Finding{What: "version", Name: e.Ref(), Problem: problem, Of: p.blob.String()})
	}
}

// tensorOf says what of a version lies in a blob.
func tensorOf(m *manifest.Manifest, v *Version, blob manifest.Digest) string {
	for i := range m.Tensors {
		if m.Tensors[i].SHA256 == blob {
			return fmt.Sprintf("tensor %q", m.Tensors[i].Names[0])
		}
	}
	if b := v.bundle(); b != nil {
		if sum, err := fromOCI(b.Digest); err == nil && sum == blob {
			return fmt.Sprintf("the %d small tensors", len(small(m)))
		}
	}
	return ""
}

// Rebuild writes a new index.json from the versions that are whole, in a directory that no daemon serves. names gives a
// version its names. The old index stays beside it, under the name that is returned; nothing is deleted.
func Rebuild(ctx context.Context, path string, opt Options, names func(*Version) []Entry) (kept string, err error) {
	l, err := openDir(path, opt, false)
	if err != nil {
		return "", err
	}
	defer l.Close()
	r, err := l.check(ctx)
	if err != nil {
		return "", err
	}
	if err := l.makeDirs(); err != nil {
		return "", err
	}
	var entries []Entry
	for _, v := range r.Whole {
		for _, e := range names(v) {
			e.Version = v.Digest
			entries = append(entries, e)
		}
	}
	if _, err := l.root.Stat(ocispec.ImageIndexFile); err == nil {
		kept = "index.json.before-" + time.Now().UTC().Format("20060102T150405.000000000")
		if err := l.root.Link(ocispec.ImageIndexFile, kept); err != nil {
			return "", fmt.Errorf("keep the old index: %w", err)
		}
	}
	if err := l.writeFile(ocispec.ImageLayoutFile, []byte(layoutText), "layout"); err != nil {
		return kept, err
	}
	if l.id == "" {
		l.id = randomName()
	}
	l.damaged[manifest.Digest{}] = errors.New("rebuilding: remove nothing")
	return kept, l.Replace(entries)
}
