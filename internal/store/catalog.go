package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/ref"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// catalogFormat is what is written. Format 1, without a checksum and with the models beside it, is read too.
const catalogFormat = 2

// catalogJSON is the file. Its checksum finds what a half-dead memory or another program did to it.
type catalogJSON struct {
	Format  int                  `json:"format"`
	Sum     string               `json:"sum,omitempty"`     // CRC32C of content as it stands in the file
	Content json.RawMessage      `json:"content,omitempty"` // contentJSON
	Models  map[string]modelJSON `json:"models,omitempty"`  // format 1
}

type contentJSON struct {
	Boot   string               `json:"boot"`              // boot of the machine that wrote it: memory does not survive another
	DataID string               `json:"data_id,omitempty"` // of the data directory that had it too
	Data   string               `json:"data,omitempty"`    // where that was, for people
	Models map[string]modelJSON `json:"models"`
	// Unwritten are the versions that are not in the data directory. Any other that its index does not name was removed.
	Unwritten []manifest.Digest `json:"unwritten,omitempty"`
	// Owners are the uids that files of memory count for (owners.go).
	Owners map[string]uint32 `json:"owners,omitempty"`
}

type modelJSON struct {
	Next    int                           `json:"next"`
	Tags    map[string]manifest.Digest    `json:"tags"`
	Created map[manifest.Digest]time.Time `json:"created"`
	Pinned  []manifest.Digest             `json:"pinned,omitempty"`
	Forms   map[string]derive.Form        `json:"forms,omitempty"` // of tags
}

// catalog is what the file says.
type catalog struct {
	boot      string
	dataID    string
	data      string
	models    map[string]*model
	unwritten map[manifest.Digest]bool
	owners    map[string]uint32
}

func catalogSum(content []byte) string {
	return fmt.Sprintf("%08x", crc32.Checksum(content, castagnoli))
}

// parseCatalog reads a catalog, and believes no part of one that is damaged.
func parseCatalog(b []byte) (*catalog, error) {
	if len(strings.TrimSpace(string(b))) == 0 {
		return nil, errors.New("it is empty")
	}
	var file catalogJSON
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, err
	}
	content := contentJSON{Models: file.Models}
	switch {
	case file.Format > catalogFormat:
		return nil, fmt.Errorf("%w: format %d, this release reads %d", errNewer, file.Format, catalogFormat)
	case file.Format == catalogFormat:
		if sum := catalogSum(file.Content); sum != file.Sum {
			return nil, fmt.Errorf("its content has checksum %s, it says %q", sum, file.Sum)
		}
		if err := json.Unmarshal(file.Content, &content); err != nil {
			return nil, err
		}
	case file.Format != 1 || file.Models == nil:
		return nil, fmt.Errorf("format %d", file.Format)
	}
	out := &catalog{boot: content.Boot, dataID: content.DataID, data: content.Data, models: map[string]*model{}, unwritten: map[manifest.Digest]bool{}, owners: content.Owners}
	for _, d := range content.Unwritten {
		out.unwritten[d] = true
	}
	for name, mj := range content.Models {
		m, err := parseModel(name, mj)
		if err != nil {
			return nil, err
		}
		out.models[name] = m
	}
	return out, nil
}

func parseModel(name string, mj modelJSON) (*model, error) {
	if r, err := ref.Parse(name); err != nil || !r.Bare() {
		return nil, fmt.Errorf("model name %q", name)
	}
	m := newModel(name)
	m.next = max(1, mj.Next)
	for tag, d := range mj.Tags {
		if r, err := ref.Parse(name + ":" + tag); err != nil || r.Tag != tag || r.Digest != nil {
			return nil, fmt.Errorf("tag %q of %s", tag, name)
		}
		m.tags[tag] = d
		m.created[d] = mj.Created[d]
	}
	for tag, f := range mj.Forms {
		if _, ok := m.tags[tag]; ok && f.Derived() {
			m.forms[tag] = f
		}
	}
	for _, d := range mj.Pinned {
		if _, ok := m.created[d]; ok {
			m.pinned[d] = true
		}
	}
	return m, nil
}

var errNewer = errors.New("written by a newer release")

// encodeCatalog is the file of a catalog.
func encodeCatalog(c *catalog) ([]byte, error) {
	models := map[string]modelJSON{}
	for name, m := range c.models {
		mj := modelJSON{Next: m.next, Tags: m.tags, Created: m.created, Forms: m.forms}
		for d := range m.pinned {
			mj.Pinned = append(mj.Pinned, d)
		}
		slices.SortFunc(mj.Pinned, compareDigests)
		models[name] = mj
	}
	content := contentJSON{Boot: c.boot, DataID: c.dataID, Data: c.data, Models: models, Owners: c.owners}
	for d := range c.unwritten {
		content.Unwritten = append(content.Unwritten, d)
	}
	slices.SortFunc(content.Unwritten, compareDigests)
	b, err := json.Marshal(content)
	if err != nil {
		return nil, err
	}
	return json.Marshal(catalogJSON{Format: catalogFormat, Sum: catalogSum(b), Content: b})
}

func compareDigests(a, b manifest.Digest) int { return strings.Compare(string(a[:]), string(b[:])) }

// readCatalog reads the catalog of this store. Without one it is empty.
func (s *Store) readCatalog() (*catalog, error) {
	f, err := s.dir.Open(catalogFile)
	if errors.Is(err, os.ErrNotExist) {
		return &catalog{boot: s.boot}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read catalog: %w", err)
	}
	defer f.Close()
	err = failpoint.Step("read-catalog")
	var b []byte
	if err == nil {
		b, err = io.ReadAll(io.LimitReader(f, 256<<20))
	}
	if err != nil {
		return nil, fmt.Errorf("read catalog: %w", err)
	}
	c, err := parseCatalog(b)
	if err == nil {
		maps.Copy(s.owned, c.owners)
		return c, nil
	}
	kind, hint := zcerr.Corrupt, "nothing was deleted. See what is whole with 'zcctl fsck --dir %s'; with --rebuild it makes a new catalog of that"
	if errors.Is(err, errNewer) {
		kind, hint = zcerr.Unsupported, "nothing was changed: start the release of zcstored that wrote %s"
	}
	return nil, zcerr.New(kind, "the catalog in %s cannot be read: %w", s.dir.Path(), err).WithHint(hint, s.dir.Path())
}

// writeCatalogLocked makes the names durable for the life of the directory.
func (s *Store) writeCatalogLocked() error {
	s.pruneOwnersLocked()
	c := &catalog{boot: s.boot, models: s.models, owners: s.owned}
	if s.data != nil {
		c.dataID, c.data, c.unwritten = s.dataID, s.data.Path(), map[manifest.Digest]bool{}
		for d := range s.versions {
			if s.disk[d] == nil {
				c.unwritten[d] = true
			}
		}
	}
	b, err := encodeCatalog(c)
	if err != nil {
		return err
	}
	if err := s.dir.ReplaceFile(catalogFile, b); err != nil {
		return s.explainLocked(fmt.Errorf("write catalog: %w", err))
	}
	return nil
}

// bootID names this boot of the machine.
func bootID(opt Options) (string, error) {
	if opt.BootID != "" {
		return opt.BootID, nil
	}
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
