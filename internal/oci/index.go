package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/ref"
)

// Format is the version of our use of the format: annotations and media types. It stands in index.json.
const Format = 1

// MaxIndexBytes is the largest index.json that is read.
const MaxIndexBytes = 256 << 20

// Annotations of index.json and of its descriptors.
const (
	annFormat  = "io.zcstore.format"
	annID      = "io.zcstore.id"      // of the directory, made once
	annVersion = "io.zcstore.version" // digest of the version, which is the config's
	annCreated = "io.zcstore.created" // when the name first had the version
	annNext    = "io.zcstore.next"    // number of the name's next automatic tag
	annPinned  = "io.zcstore.pinned"  // "true": kept in memory
	annOwner   = "io.zcstore.owner"   // uid that put it
	annForm    = "io.zcstore.form"    // form of who attaches by this name and asks for none; empty: plain
	timeLayout = "2006-01-02T15:04:05.000Z07:00"
)

// ErrNewer is the target of errors about a directory that a later release wrote.
var ErrNewer = errors.New("written by a newer release")

// Entry is one name:tag of index.json.
type Entry struct {
	Name, Tag string
	Version   manifest.Digest
	Created   time.Time // when the name first had the version
	Next      int       // number of the name's next automatic tag
	Pinned    bool      // keep it in memory
	Owner     *uint32   // uid that put it, where it is known
	Form      string    // of who attaches by this name and asks for none; empty: plain

	image ocispec.Descriptor
}

// Ref is the entry's name:tag.
func (e *Entry) Ref() string { return e.Name + ":" + e.Tag }

// Index is what index.json says.
type Index struct {
	ID      string // of the directory; empty when another tool made it
	Entries []Entry
	Foreign []ocispec.Descriptor // of anything that is not ours
}

// ParseIndex reads index.json: the entries that are ours, and the descriptors of anything else, which is kept as it is. A
// descriptor of our type that another tool wrote (a pull from a registry) needs no annotation but the reference name.
func ParseIndex(b []byte) (_ *Index, err error) {
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, errors.New("index.json is empty")
	}
	var ix ocispec.Index
	if err := json.Unmarshal(b, &ix); err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	if ix.SchemaVersion != 2 {
		return nil, fmt.Errorf("index.json: schema version %d, this release reads 2", ix.SchemaVersion)
	}
	if s, ok := ix.Annotations[annFormat]; ok {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("index.json: format %q", s)
		}
		if n > Format {
			return nil, fmt.Errorf("%w: index.json has format %d, this release reads %d", ErrNewer, n, Format)
		}
	}
	out := &Index{ID: ix.Annotations[annID]}
	seen := map[string]bool{}
	for _, d := range ix.Manifests {
		if d.MediaType != ocispec.MediaTypeImageManifest || (d.ArtifactType != ArtifactType && d.Annotations[annVersion] == "") {
			out.Foreign = append(out.Foreign, d)
			continue
		}
		e, err := parseEntry(d)
		if err != nil {
			return nil, fmt.Errorf("index.json: %w", err)
		}
		if seen[e.Ref()] {
			return nil, fmt.Errorf("index.json names %s twice", e.Ref())
		}
		seen[e.Ref()] = true
		out.Entries = append(out.Entries, e)
	}
	return out, nil
}

func parseEntry(d ocispec.Descriptor) (Entry, error) {
	a := d.Annotations
	e := Entry{Pinned: a[annPinned] == "true", Next: 1, Form: a[annForm], image: d}
	if _, err := fromOCI(d.Digest); err != nil {
		return e, err
	}
	// The reference name is the name, with no second one beside it: it is the one that other tools set when they copy.
	r, err := ref.Parse(a[ocispec.AnnotationRefName])
	if err != nil || r.Digest != nil {
		return e, fmt.Errorf("descriptor %s has the reference name %q", d.Digest, a[ocispec.AnnotationRefName])
	}
	if e.Name, e.Tag = r.Name, r.Tag; e.Tag == "" {
		e.Tag = ref.Latest
	}
	if s := a[annVersion]; s != "" {
		if e.Version, err = manifest.ParseDigest(s); err != nil {
			return e, fmt.Errorf("version of %s: %w", e.Ref(), err)
		}
	}
	if s := a[annCreated]; s != "" {
		if e.Created, err = time.Parse(timeLayout, s); err != nil {
			return e, fmt.Errorf("time of %s: %w", e.Ref(), err)
		}
	}
	if s := a[annNext]; s != "" {
		if e.Next, err = strconv.Atoi(s); err != nil || e.Next < 1 {
			return e, fmt.Errorf("next tag of %s: %q", e.Ref(), s)
		}
	}
	if s := a[annOwner]; s != "" {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return e, fmt.Errorf("owner of %s: %w", e.Ref(), err)
		}
		uid := uint32(n)
		e.Owner = &uid
	}
	return e, nil
}

// encodeIndex writes index.json. The entries must carry their image descriptors.
func encodeIndex(in *Index) ([]byte, error) {
	entries := slices.Clone(in.Entries)
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Ref(), b.Ref()) })
	ix := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Annotations: map[string]string{annFormat: strconv.Itoa(Format), annID: in.ID},
		Manifests:   []ocispec.Descriptor{},
	}
	for _, e := range entries {
		d := ocispec.Descriptor{MediaType: e.image.MediaType, Digest: e.image.Digest, Size: e.image.Size, ArtifactType: ArtifactType}
		d.Annotations = map[string]string{
			ocispec.AnnotationRefName: e.Ref(),
			annVersion:                e.Version.String(), annNext: strconv.Itoa(e.Next),
		}
		if !e.Created.IsZero() {
			d.Annotations[annCreated] = e.Created.UTC().Format(timeLayout)
		}
		if e.Pinned {
			d.Annotations[annPinned] = "true"
		}
		if e.Form != "" {
			d.Annotations[annForm] = e.Form
		}
		if e.Owner != nil {
			d.Annotations[annOwner] = strconv.FormatUint(uint64(*e.Owner), 10)
		}
		ix.Manifests = append(ix.Manifests, d)
	}
	ix.Manifests = append(ix.Manifests, in.Foreign...)
	b, err := json.MarshalIndent(ix, "", " ")
	if err != nil {
		return nil, fmt.Errorf("encode index.json: %w", err)
	}
	return append(b, '\n'), nil
}

func checkLayoutFile(b []byte, err error) error {
	if err != nil {
		return err
	}
	var v ocispec.ImageLayout
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("oci-layout: %w", err)
	}
	if v.Version != ocispec.ImageLayoutVersion {
		return fmt.Errorf("oci-layout: version %q, this release reads %s", v.Version, ocispec.ImageLayoutVersion)
	}
	return nil
}

func toOCI(d manifest.Digest) digest.Digest {
	return digest.NewDigestFromEncoded(digest.SHA256, d.Hex())
}

func fromOCI(d digest.Digest) (manifest.Digest, error) {
	got, err := manifest.ParseDigest(string(d))
	if err != nil {
		return got, fmt.Errorf("digest %q: only sha256 is kept here", d)
	}
	return got, nil
}
