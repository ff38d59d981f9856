package store

import "github.com/zcstore/zcstore/shm"

// Totals is where the memory is, in the kernel's blocks. On a file system of our own its sum is what statfs calls used, at
// every moment at which no put is just beginning or ending.
type Totals struct {
	Used     uint64 // linked segments and tables
	Overhead uint64 // other files that have a name: the lock, the catalog, and whatever is not ours
	Held     uint64 // of deleted versions that leases hold
	Reserved uint64 // segments without a name, which open puts fill
	// Orphaned is memory of files without a name that no lease accounts for: a client kept its mapping and closed its
	// connection. The kernel says so only on a file system of our own; elsewhere it is 0.
	Orphaned uint64
	OwnMount bool // nothing else is on the file system, so that Orphaned is known
}

// Sum is all of it.
func (t Totals) Sum() uint64 { return t.Used + t.Overhead + t.Held + t.Reserved + t.Orphaned }

func (s *Store) totalsLocked(space shm.Space) Totals {
	t := Totals{Used: s.usedBytesLocked(), Held: s.heldBytesLocked(), Reserved: s.filling, OwnMount: space.Own}
	t.Overhead = space.Linked - min(space.Linked, t.Used)
	if space.Own {
		t.Orphaned = space.Taken - min(space.Taken, t.Sum()+s.admitted) // what is just being allocated is nobody's orphan
	}
	return t
}

func (s *Store) hugeBytesLocked() uint64 {
	n := uint64(0)
	for _, sg := range s.segments {
		n += sg.huge
	}
	return n
}

// countFilling enters the file that was made for a put into the totals.
func (p *Put) countFilling() error {
	u, err := p.w.Usage()
	if err != nil {
		return err
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.filling = u.Blocks
	p.s.filling += u.Blocks
	return nil
}

// name publishes the put's new segment: from then on it counts among the files that have a name.
func (p *Put) name(file string) error {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if err := p.w.Publish(file); err != nil {
		return err
	}
	p.s.filling -= p.filling
	p.filling = 0
	return nil
}
