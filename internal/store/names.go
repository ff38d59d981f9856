package store

import (
	"fmt"
	"time"

	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/ref"
)

// nameLocked points the tags of a reference at a digest, durably. names must be held. A form becomes the default of these tags;
// with none, a tag keeps the one that it has: it goes with the name, not with what that points at. On error nothing has changed.
func (s *Store) nameLocked(r ref.Ref, d manifest.Digest, replace bool, form derive.Form) error {
	if err := s.checkTargetLocked(r, d, replace); err != nil {
		return err
	}
	m := newModel(r.Name)
	if old := s.models[r.Name]; old != nil {
		m = old.clone()
	}
	if r.Tag != "" {
		m.point(r.Tag, d, form)
	} else {
		m.point(ref.Latest, d, form)
		if !m.hasAuto(d) {
			for m.tags[m.auto()] != (manifest.Digest{}) {
				m.next++
			}
			m.point(m.auto(), d, form)
			m.next++
		}
	}
	if _, ok := m.created[d]; !ok {
		m.created[d] = m.later(now())
	}
	gone := m.pruneCreated()
	if err := s.replaceModelLocked(m); err != nil {
		return err
	}
	failpoint.Reached("tag.named")
	s.releaseUnnamedLocked(gone)
	return nil
}

// point sets a tag, and the default form of who attaches by it, unless that is empty.
func (m *model) point(tag string, d manifest.Digest, form derive.Form) {
	m.tags[tag] = d
	if form.Derived() {
		m.forms[tag] = form
	} else if form == derive.Plain {
		delete(m.forms, tag)
	}
}

// formOf is the form of who attaches by a reference and names none. A version that is named by its digest alone is plain.
func (m *model) formOf(r ref.Ref) derive.Form {
	tag := r.Tag
	if tag == "" && r.Digest == nil {
		tag = ref.Latest
	}
	if f, ok := m.forms[tag]; ok {
		return f
	}
	return derive.Plain
}

// now is the wall clock to the millisecond, as the catalog has it.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

// later is t, or just after the newest version when the clock was set back since that was made: lists are in the order of puts.
func (m *model) later(t time.Time) time.Time {
	for _, c := range m.created {
		if !t.After(c) {
			t = c.Add(time.Millisecond)
		}
	}
	return t
}

func (m *model) auto() string { return fmt.Sprintf("v%d", m.next) }

func (m *model) hasAuto(d manifest.Digest) bool {
	for tag, got := range m.tags {
		if _, ok := autoNumber(tag); ok && got == d {
			return true
		}
	}
	return false
}

func (m *model) clone() *model {
	c := newModel(m.name)
	c.next = m.next
	for k, v := range m.pinned {
		c.pinned[k] = v
	}
	for k, v := range m.tags {
		c.tags[k] = v
	}
	for k, v := range m.forms {
		c.forms[k] = v
	}
	for k, v := range m.created {
		c.created[k] = v
	}
	return c
}

// pruneCreated forgets digests that no tag of the model names any more, and lists them, and the forms of tags that are gone.
func (m *model) pruneCreated() []manifest.Digest {
	named := map[manifest.Digest]bool{}
	for _, d := range m.tags {
		named[d] = true
	}
	for tag := range m.forms {
		if _, ok := m.tags[tag]; !ok {
			delete(m.forms, tag)
		}
	}
	var gone []manifest.Digest
	for d := range m.created {
		if !named[d] {
			delete(m.created, d)
			delete(m.pinned, d)
			gone = append(gone, d)
		}
	}
	return gone
}
