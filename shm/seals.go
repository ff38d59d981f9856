package shm

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// AllSeals is what a published memfd is sealed against: writes, cuts, growth, and further seals.
const AllSeals = allSeals

// CheckSeals refuses a descriptor that lacks one of the seals that were promised for it. 0 promises none, and costs nothing.
func CheckSeals(f *os.File, promised uint32) error {
	if promised == 0 {
		return nil
	}
	have, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("ask for the seals of a descriptor: %w", err)
	}
	if uint32(have)&promised != promised {
		return fmt.Errorf("a descriptor has the seals %#x, promised were %#x: its memory could be changed or cut", have, promised)
	}
	return nil
}
