package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"

	"github.com/zcstore/zcstore/models/manifest"
)

func (l *Layout) releaseLocked(held []manifest.Digest) {
	for _, d := range held {
		if l.holds[d]--; l.holds[d] <= 0 {
			delete(l.holds, d)
		}
	}
}

// collectLocked forgets versions that neither the index nor a stage holds, and removes their blobs and the candidates that
// nothing uses. The index that forgot them is on disk already. What cannot be removed now goes at the next start.
func (l *Layout) collectLocked(candidates []manifest.Digest) {
	named := map[manifest.Digest]bool{}
	for i := range l.entries {
		named[l.entries[i].Version] = true
	}
	for d, v := range l.versions {
		image, _ := fromOCI(v.image.Digest)
		if named[d] || l.holds[image] > 0 {
			continue
		}
		delete(l.versions, d)
		for _, b := range v.blobs() {
			blob, _ := fromOCI(b.Digest)
			candidates = append(candidates, blob)
		}
	}
	for d := range l.damaged {
		if !named[d] {
			delete(l.damaged, d)
		}
	}
	if len(candidates) == 0 || l.broken != nil {
		return
	}
	used, complete := l.usedLocked()
	if !complete {
		return
	}
	for _, d := range candidates {
		if _, ok := l.present[d]; ok && !used[d] {
			l.removeLocked(d)
		}
	}
}

func (l *Layout) removeLocked(d manifest.Digest) {
	err := l.step("blob.remove", func() error { return l.root.Remove(blobPath(d)) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.opt.Log.Warn("remove blob", zap.Stringer("blob", d), zap.Error(err))
		return
	}
	delete(l.present, d)
	delete(l.suspect, d)
}

// usedLocked is every blob that a version, a stage or a foreign descriptor needs. It is not complete when something that the
// index names cannot be read: nothing may be removed then.
func (l *Layout) usedLocked() (used map[manifest.Digest]bool, complete bool) {
	used = map[manifest.Digest]bool{}
	for d := range l.holds {
		used[d] = true
	}
	for _, v := range l.versions {
		for _, b := range v.blobs() {
			d, _ := fromOCI(b.Digest)
			used[d] = true
		}
	}
	complete = len(l.damaged) == 0
	for _, d := range l.foreign {
		complete = l.follow(d, used, 8) && complete
	}
	return used, complete
}

// follow marks a foreign descriptor and what it refers to.
func (l *Layout) follow(d ocispec.Descriptor, used map[manifest.Digest]bool, depth int) bool {
	sum, err := fromOCI(d.Digest)
	if err != nil || depth == 0 {
		return false
	}
	if used[sum] {
		return true
	}
	used[sum] = true
	var refs struct {
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		Manifests []ocispec.Descriptor `json:"manifests"`
		Subject   *ocispec.Descriptor  `json:"subject"`
	}
	switch d.MediaType {
	case ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex,
		"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json":
	default:
		return true
	}
	b, err := l.readBlob(sum, d.Size, MaxImageBytes)
	if err != nil || json.Unmarshal(b, &refs) != nil {
		return false
	}
	all := append(refs.Layers, refs.Manifests...)
	for _, p := range []*ocispec.Descriptor{refs.Config, refs.Subject} {
		if p != nil {
			all = append(all, *p)
		}
	}
	for _, r := range all {
		if !l.follow(r, used, depth-1) {
			return false
		}
	}
	return true
}

// listBlobs notes which blobs there are.
func (l *Layout) listBlobs() error {
	dir, err := l.root.Open(blobDir)
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	defer dir.Close()
	infos, err := dir.Readdir(-1)
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, st := range infos {
		d, err := manifest.ParseDigest("sha256:" + st.Name())
		if err != nil || !st.Mode().IsRegular() {
			continue // not ours to judge
		}
		l.present[d] = st.Size()
	}
	return nil
}

// sweep removes what a crash left: temporary files, and blobs that nothing names.
func (l *Layout) sweep() error {
	if err := l.emptyTmp(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	used, complete := l.usedLocked()
	if !complete {
		l.opt.Log.Warn("blobs that nothing names are kept: something that the index names cannot be read")
		return nil
	}
	n := 0
	for d := range l.present {
		if !used[d] {
			l.removeLocked(d)
			n++
		}
	}
	if n > 0 {
		l.opt.Log.Info("removed blobs that an interrupted put or rm had left", zap.Int("blobs", n))
	}
	return nil
}

func (l *Layout) emptyTmp() error {
	dir, err := l.root.Open(tmpDir)
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	dir.Close()
	if err != nil {
		return fmt.Errorf("list temporary files: %w", err)
	}
	for _, n := range names {
		if err := l.step("tmp.remove", func() error { return l.root.Remove(tmpDir + "/" + n) }); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove temporary file: %w", err)
		}
	}
	return nil
}
