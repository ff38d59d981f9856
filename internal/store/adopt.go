package store

import (
	"errors"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/ref"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// adopt finds out what is stored: the names from the disk's index where there is one, otherwise from the catalog; the bytes
// from the files in memory, when they are of this boot and whole. What nothing names is removed.
func (s *Store) adopt() error {
	cat, err := s.readCatalog()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.data != nil {
		s.dataID = s.data.ID()
	}
	s.adoptNamesLocked(cat)
	reboot := cat.boot != "" && cat.boot != s.boot
	keep := map[string]bool{lockFile: true, catalogFile: true}
	for _, m := range s.models {
		for tag, d := range m.tags {
			if s.versions[d] != nil || s.lost[d] != nil {
				continue
			}
			v, err := s.adoptResident(d, reboot)
			if err == nil {
				v.created = m.created[d]
				s.addVersionLocked(v)
				keep[tableFile(d)] = true
				continue
			}
			if e := s.disk[d]; e != nil && e.v != nil { // its place is on disk; what is in memory of it goes
				if !errors.Is(err, errAbsent) && !reboot {
					s.log.Warn("version in memory is damaged, the disk has it", zap.String("model", m.name+":"+tag), zap.Error(err))
				}
				continue
			}
			keep[tableFile(d)] = true
			s.lost[d] = s.whyLost(d, err, cat)
			s.log.Error("stored version is damaged", zap.String("model", m.name+":"+tag), zap.Stringer("digest", d), zap.Error(s.lost[d]))
		}
	}
	s.touchByAgeLocked()
	if !reboot {
		for _, name := range s.adoptFormsLocked() {
			keep[name] = true
		}
	}
	for id := range s.segments {
		keep[segmentPrefix+id] = true
	}
	if reboot && s.data == nil { // nothing but these files is left of what was stored: fsck may save them
		return nil
	}
	return s.sweep(keep)
}

// touchByAgeLocked has the versions in memory used in the order of their age: when they really were is not kept.
func (s *Store) touchByAgeLocked() {
	var all []*version
	for _, v := range s.versions {
		all = append(all, v)
	}
	slices.SortFunc(all, func(a, b *version) int { return a.created.Compare(b.created) })
	for _, v := range all {
		s.touchLocked(v.digest)
	}
}

// adoptNamesLocked fills in the models. With a data directory its index has the last word: a name that only the catalog has
// is one whose version was never written, or one that was removed just before a crash.
func (s *Store) adoptNamesLocked(cat *catalog) {
	if s.data == nil {
		s.models = cat.models
		if s.models == nil {
			s.models = map[string]*model{}
		}
		return
	}
	for _, e := range s.data.Entries() {
		m := s.models[e.Name]
		if m == nil {
			m = newModel(e.Name)
			s.models[e.Name] = m
		}
		m.tags[e.Tag] = e.Version
		m.created[e.Version] = e.Created
		m.next = max(m.next, e.Next)
		if e.Pinned {
			m.pinned[e.Version] = true
		}
		if f := derive.Form(e.Form); f.Derived() {
			m.forms[e.Tag] = f
		}
		if e.Owner != nil && !s.ownerLocked(tableFile(e.Version)).known { // a reboot took the catalog
			s.owned[tableFile(e.Version)] = *e.Owner
		}
		if s.disk[e.Version] == nil {
			v, err := s.data.Version(e.Version)
			if err != nil {
				s.log.Error("version on disk is damaged", zap.String("model", e.Ref()), zap.Error(err))
			}
			s.disk[e.Version] = &onDisk{v: v}
		}
	}
	for name, from := range cat.models {
		for tag, d := range from.tags {
			if s.disk[d] == nil && (cat.dataID != s.dataID || cat.unwritten[d]) {
				s.takeOverLocked(name, tag, d, from)
			}
		}
	}
}

// takeOverLocked keeps the name of a version that is in memory only. catchUp writes it to disk.
func (s *Store) takeOverLocked(name, tag string, d manifest.Digest, from *model) {
	m := s.models[name]
	if m == nil {
		m = newModel(name)
	}
	if old, taken := m.tags[tag]; taken && old != d {
		if len(from.tagsOf(d)) > 1 && tag == ref.Latest {
			return // it has another tag
		}
		s.log.Warn("the disk has other bytes under this name", zap.String("model", name+":"+tag), zap.Stringer("disk", old), zap.Stringer("memory", d))
		if m = s.models["recovered/"+d.Short()]; m == nil {
			m = newModel("recovered/" + d.Short())
		}
	}
	s.models[m.name] = m
	m.point(tag, d, from.forms[tag])
	m.created[d] = from.created[d]
	m.next = max(m.next, from.next)
	if from.pinned[d] {
		m.pinned[d] = true
	}
}

var (
	errAbsent = errors.New("it is not in shared memory")
	errReboot = errors.New("it was put before the machine was started anew, which shared memory does not survive")
)

// adoptResident opens a version's files in memory.
func (s *Store) adoptResident(d manifest.Digest, reboot bool) (*version, error) {
	if reboot { // on a file system that is no tmpfs they may be there, and may be anything
		return nil, errReboot
	}
	if !s.hasTable(d) {
		return nil, errAbsent
	}
	return s.adoptVersion(d)
}

func (s *Store) hasTable(d manifest.Digest) bool {
	f, err := s.dir.Open(tableFile(d))
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// whyLost says why a named version cannot be served.
func (s *Store) whyLost(d manifest.Digest, err error, cat *catalog) error {
	switch {
	case s.data != nil && s.disk[d] != nil:
		_, derr := s.data.Version(d)
		return fmt.Errorf("on disk: %w; in memory: %w", derr, err)
	case s.data == nil && cat.data != "" && !cat.unwritten[d]:
		return zcerr.New(zcerr.Corrupt, "it is only on disk, in %s, and this daemon was started without that", cat.data)
	}
	return err
}

// catchUp runs beside the first requests: it writes versions that are in memory only to disk, and loads pinned ones.
func (s *Store) catchUp() {
	for _, d := range s.unwritten() {
		if s.life.Err() != nil {
			return
		}
		if err := s.writeBack(d); err != nil {
			s.log.Error("write a version of memory to disk", zap.Stringer("digest", d), zap.Error(err))
		}
	}
	for _, d := range s.pinnedAndCold() {
		if s.life.Err() != nil {
			return
		}
		if err := s.loadVersion(d); err != nil {
			s.log.Error("load a pinned version", zap.Stringer("digest", d), zap.Error(err))
		}
	}
}

// unwritten lists versions that are in memory only.
func (s *Store) unwritten() []manifest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []manifest.Digest
	for d := range s.versions {
		if e := s.disk[d]; e == nil || e.v == nil {
			out = append(out, d)
		}
	}
	return out
}

func (s *Store) pinnedAndCold() []manifest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []manifest.Digest
	for d := range s.disk {
		if s.coldLocked(d) != nil && s.pinnedLocked(d) {
			out = append(out, d)
		}
	}
	return out
}

// writeBack makes a version that is in memory durable, under the names that it has.
func (s *Store) writeBack(d manifest.Digest) error {
	staged, err := s.stageResident(s.life, d)
	if err != nil {
		return err
	}
	defer staged.Release()
	s.lockNames()
	defer s.unlockNames()
	if !s.namedLocked(d) {
		return nil
	}
	before := s.disk[d]
	s.settleLocked(staged)
	entries := s.entriesLocked(nil)
	s.mu.Unlock()
	err = s.data.Replace(entries)
	s.mu.Lock()
	if err != nil {
		if delete(s.disk, d); before != nil {
			s.disk[d] = before
		}
		return err
	}
	return s.writeCatalogLocked()
}
