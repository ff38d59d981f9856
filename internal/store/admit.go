package store

import (
	"bufio"
	"fmt"
	"os"

	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// admit refuses what would not fit before anything is allocated, and reserves it of the budget.
func (p *Put) admit(need uint64) error {
	s := p.s
	space, err := s.dir.Space()
	if err != nil {
		return err
	}
	if need > space.Free {
		return s.noSpace(need, space.Free)
	}
	// A tmpfs may be larger than the memory that is left; filling it then ends in an out-of-memory kill, not in an error.
	if avail, ok := s.memAvailable(); ok && need+reserveBytes > avail {
		return s.noSpace(need, avail-min(avail, reserveBytes))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if max := s.opt.MaxBytes; max > 0 {
		// What deleted versions still pin counts, too: it is memory that the budget was given for.
		used := s.usedBytesLocked() + s.heldBytesLocked() + s.reserved
		if used+need > max {
			return zcerr.New(zcerr.NoSpace, "%s needed, %s left of the budget of %s", units.Bytes(need), units.Bytes(max-min(used, max)), units.Bytes(max)).
				WithHint("remove a version ('zcctl ls', 'zcctl rm REF'), see who holds deleted ones ('zcctl ls --all', 'zcctl ps'), or start the daemon with a larger --max-bytes")
		}
	}
	p.reserved = need
	s.reserved += need
	return nil
}

// reserveBytes of available memory are left to everybody else.
const reserveBytes = 256 << 20

func memAvailable() (uint64, bool) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, false
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		var kb uint64
		if n, _ := fmt.Sscanf(sc.Text(), "MemAvailable: %d kB", &kb); n == 1 {
			return kb << 10, true
		}
	}
	return 0, false
}
