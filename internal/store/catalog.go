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
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/ref"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// catalogFormat is what is written. Format 1, without a checksum, is read too.
const catalogFormat = 2

// catalogJSON is the file. Its checksum finds what a half-dead memory or another program did to it; the names themselves say
// nothing about whether they are the right ones.
type catalogJSON struct {
	Format int             `json:"format"`
	Boot   string          `json:"boot,omitempty"`    // boot of the machine that wrote it: memory does not survive another
	DataID string          `json:"data_id,omitempty"` // of the data directory that had it too
	Data   string          `json:"data,omitempty"`    // where that was, for people
	Sum    string          `json:"sum,omitempty"`     // CRC32C of content as it stands in the file
	Models json.RawMessage `json:"models"`            // of names to modelJSON
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

func catalogSum(models []byte) string { return fmt.Sprintf("%08x", crc32.Checksum(models, castagnoli)) }

// parseCatalog reads a catalog, and believes no part of one that is damaged.
func parseCatalog(b []byte) (*catalog, error) {
	if len(strings.TrimSpace(string(b))) == 0 {
		return nil, errors.New("it is empty")
	}
	var c catalogJSON
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	if c.Format > catalogFormat {
		return nil, fmt.Errorf("%w: format %d, this release reads %d", errNewer, c.Format, catalogFormat)
	}
	if c.Format < 1 {
		return nil, fmt.Errorf("format %d", c.Format)
	}
	if sum := catalogSum(c.Models); c.Format > 1 && sum != c.Sum {
		return nil, fmt.Errorf("its names have checksum %s, it says %q", sum, c.Sum)
	}
	var models map[string]modelJSON
	if err := json.Unmarshal(c.Models, &models); err != nil {
		return nil, err
	}
	out := &catalog{boot: c.Boot, dataID: c.DataID, data: c.Data, models: map[string]*model{}, unwritten: map[manifest.Digest]bool{}, owners: c.Owners}
	for _, d := range c.Unwritten {
		out.unwritten[d] = true
	}
	for name, mj := range models {
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
		mj := modelJSON{Next: m.next, Tags: m.tags, Created: m.created}
		for d := range m.pinned {
			mj.Pinned = append(mj.Pinned, d)
		}
		slices.SortFunc(mj.Pinned, compareDigests)
		models[name] = mj
	}
	content, err := json.Marshal(models)
	if err != nil {
		return nil, err
	}
	out := catalogJSON{Format: catalogFormat, Boot: c.boot, DataID: c.dataID, Data: c.data, Sum: catalogSum(content), Models: content, Owners: c.owners}
	for d := range c.unwritten {
		out.Unwritten = append(out.Unwritten, d)
	}
	slices.SortFunc(out.Unwritten, compareDigests)
	return json.Marshal(out)
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
