package shm

import (
	"os"
	"slices"
)

// The kinds of backing, as --backing names them.
const (
	KindShm   = "shm"
	KindMemfd = "memfd"
)

// Backing is where published files are kept and how they are handed out. What it promises of them is its Guarantee; all
// else is the same for every kind:
//
//   - a file appears under its name whole, or not at all, and is never written again;
//   - what Open gives is read-only, with a file description of its own, so that no client moves another's offset;
//   - Remove takes the name away, and whoever has the file mapped keeps valid bytes.
//
// A Backing is safe for concurrent use.
type Backing interface {
	// Kind is KindShm or KindMemfd.
	Kind() string
	// Path says for people where the files are: a directory, or words for memory without a name.
	Path() string
	// Create reserves size bytes, over zero, for a segment nobody can see yet. Errors: *NoSpaceError, *FullError.
	Create(size int64) (*Writer, error)
	// Open opens a published file. Errors: one that is os.ErrNotExist when there is none of that name.
	Open(name string) (*os.File, error)
	// Remove takes a file away. One that is not there is no error.
	Remove(name string) error
	// ReplaceFile writes a small file whole: readers see the old bytes or the new ones, after a crash as well.
	// Errors: *NoSpaceError, *FullError.
	ReplaceFile(name string, b []byte) error
	// Names lists what is published, unsorted.
	Names() ([]string, error)
	// Space is what there is and what is taken.
	Space() (Space, error)
	// Guarantee is what holds for files published from now on, and for those adopted.
	Guarantee() Guarantee
	// Destroy removes what an empty backing has left behind, and does nothing while it has files that are not named in
	// expendable.
	Destroy(expendable ...string) error
	// Close lets go of the backing. What is published stays wherever Guarantee().SurvivesRestart says so.
	Close() error
}

// Space is a backing's room in bytes, as the kernel counts it.
type Space struct {
	Size uint64 // of the file system, or of the memory when there is none
	Free uint64 // what may still be taken
	// Linked is the memory of every file that has a name here, whoever made it.
	Linked uint64
	// Taken is everything that is in use on the file system: also files without a name that somebody has open or mapped.
	// It means something only when Own is set.
	Taken uint64
	// Own tells that nothing but this backing is on the file system, so that Taken is all its own.
	Own bool
}

// Reach is how far somebody comes who tries to change the bytes of a published file.
type Reach int

// Reaches, from the best.
const (
	ReachUnknown Reach = iota
	ReachNever         // the kernel refuses every way
	ReachByName        // not through a descriptor that was handed out; by opening the file's name for writing
	ReachByFD          // a descriptor that was handed out can be opened again for writing
)

func (r Reach) String() string {
	switch r {
	case ReachNever:
		return "never"
	case ReachByName:
		return "by name"
	case ReachByFD:
		return "by descriptor"
	}
	return "unknown"
}

// Swap is whether pages can leave memory for a disk.
type Swap int

// Swaps.
const (
	SwapUnknown  Swap = iota
	SwapNever         // the mount forbids it (noswap)
	SwapNone          // this machine has no swap now
	SwapPossible      // pages may be written to a swap device
)

func (s Swap) String() string {
	switch s {
	case SwapNever:
		return "never"
	case SwapNone:
		return "none here"
	case SwapPossible:
		return "possible"
	}
	return "unknown"
}

// Guarantee is what holds for the published files of a backing, as data. Its words are made in internal/store.
type Guarantee struct {
	OtherUIDs Reach // processes of users that are neither the daemon's nor root
	SameUID   Reach // processes of the daemon's own user
	Root      Reach // processes with every capability
	// SurvivesRestart tells that files are there for the next daemon when this one ends, also by SIGKILL. No backing
	// survives a reboot.
	SurvivesRestart bool
	HugePages       bool // pages of 2 MiB may be used; whether a segment got them is measured (HugeBytes)
	Swap            Swap
}

// FullError says that a backing takes no further file, although there is memory.
type FullError struct {
	What       string // of which there are no more: "inodes", "descriptors in the service manager's store"
	Need, Have uint64
	Fix        string // what to change
}

func (e *FullError) Error() string { return "no " + e.What + " left for another file" }

// destroy removes the files of a backing that has no others.
func destroy(b Backing, expendable []string) error {
	names, err := b.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if !slices.Contains(expendable, n) {
			return nil
		}
	}
	for _, n := range names {
		if err := b.Remove(n); err != nil {
			return err
		}
	}
	return nil
}
