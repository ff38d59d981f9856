package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"

	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/internal/parallel"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/ref"
	"github.com/zcstore/zcstore/models/safetensors"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm"
	"github.com/zcstore/zcstore/shm/region"
)

// Verified is what Verify found.
type Verified struct {
	Ref     string
	Digest  manifest.Digest
	Tensors int
	Bytes   uint64   // that were read and hashed
	Damaged []string // names of tensors whose bytes are not those of their digest
	Disk    bool     // it is only on disk: those bytes were read
	Reload  bool     // it is damaged in memory, and the next attach loads it from disk again
	// Forms that are damaged, and the names of what was made. They were dropped: the next attach has them made again.
	Forms []string
}

// Verify reads every tensor of a version, in shared memory or where it is only on disk there, and compares its SHA-256. A
// version with a damaged tensor is not served any more, nor is any other that uses the same bytes, until it is loaded from disk or
// put again; workers that have them mapped are not touched. Forms of the version that are in memory are read as well. Errors: Invalid, NotFound, Corrupt when the version's own files
// cannot be read.
func (s *Store) Verify(ctx context.Context, target string) (*Verified, error) {
	return s.verify(ctx, target, false)
}

// VerifyQuick is Verify with CRC32C in place of SHA-256: it finds bytes that changed by accident, at the speed of memory.
// What is only on disk has no such checksums and is compared by SHA-256 all the same. Errors: also Unsupported, when
// a segment has no checksums.
func (s *Store) VerifyQuick(ctx context.Context, target string) (*Verified, error) {
	return s.verify(ctx, target, true)
}

func (s *Store) verify(ctx context.Context, target string, quick bool) (_ *Verified, err error) {
	defer explainInto(&err)
	r, err := ref.Parse(target)
	if err != nil {
		return nil, zcerr.New(zcerr.Invalid, "%w", err).WithHint(ref.Hint)
	}
	for {
		s.mu.Lock()
		v, tag, err := s.resolveLocked(r)
		var cold *coldError
		if errors.As(err, &cold) {
			_, tag, err = s.findLocked(r)
		}
		if v != nil {
			s.wanted[v.digest]++ // nobody takes it out of memory meanwhile
		}
		s.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if cold != nil {
			out := &Verified{Ref: r.Name + ":" + tag, Disk: true}
			return out, s.verifyCold(ctx, cold.digest, out)
		}
		out, err := s.verifyResident(ctx, v, r.Name+":"+tag, quick)
		s.mu.Lock()
		s.unwantLocked(v.digest)
		moved := s.versions[v.digest] != v
		s.mu.Unlock()
		if zcerr.KindOf(err) == zcerr.Conflict && moved { // a compaction put its files in other places
			continue
		}
		return out, err
	}
}

// verifyResident is verify for a version in memory. Errors: also Conflict, when it has gone from its files.
func (s *Store) verifyResident(ctx context.Context, v *version, name string, quick bool) (*Verified, error) {
	out := &Verified{Ref: name, Digest: v.digest}
	bad, err := s.scrub(ctx, v, quick, out)
	if err != nil || len(bad) > 0 {
		s.mu.Lock()
		moved := s.versions[v.digest] != v
		e := s.disk[v.digest]
		out.Reload = e != nil && e.v != nil
		s.mu.Unlock()
		if moved && zcerr.KindOf(err) == zcerr.Corrupt {
			return nil, zcerr.New(zcerr.Conflict, "%s was moved or removed while it was read", name).WithHint("try again")
		}
	}
	switch {
	case zcerr.KindOf(err) == zcerr.Corrupt:
		s.quarantine(v, nil, err)
		return nil, err
	case err != nil:
		return nil, err
	case len(bad) > 0:
		s.quarantine(v, bad, fmt.Errorf("the bytes of tensor %q are not those that were put", out.Damaged[0]))
		return out, nil // its forms went with it
	}
	return out, s.verifyForms(ctx, v.digest, quick, out)
}

// verifyForms is verifyResident for what was made of a version.
func (s *Store) verifyForms(ctx context.Context, d manifest.Digest, quick bool, out *Verified) error {
	s.mu.Lock()
	forms := s.formsOfLocked(d)
	for _, f := range forms {
		s.asked[f.key]++ // nobody drops it meanwhile
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, f := range forms {
			s.unaskLocked(f.key)
		}
	}()
	for _, f := range forms {
		found := Verified{Ref: out.Ref}
		bad, err := s.scrub(ctx, f.version, quick, &found)
		if err != nil && zcerr.KindOf(err) != zcerr.Corrupt {
			return err
		}
		out.Bytes += found.Bytes
		if err == nil && len(bad) == 0 {
			continue
		}
		s.mu.Lock()
		there := s.forms[f.key] == f
		if there {
			s.log.Error("dropped a damaged form", zap.Stringer("digest", d), zap.String("form", string(f.key.form)), zap.Strings("made", found.Damaged), zap.Error(err))
			s.dropFormLocked(f)
		}
		s.mu.Unlock()
		if there { // and not removed meanwhile, with its version
			out.Forms = append(out.Forms, strings.Join(append([]string{string(f.key.form)}, found.Damaged...), " "))
		}
	}
	return nil
}

// scrub reads the tensors of a version, on all cores, and gives the places of those that are damaged. It reads with pread: a
// mapping would cost a fault for each page, and a signal for one that is gone. The table alone is mapped, and guarded.
func (s *Store) scrub(ctx context.Context, v *version, quick bool, out *Verified) (bad []place, err error) {
	tab, err := s.mapFile(v.file, v.tableUse.Size)
	if err != nil {
		return nil, err
	}
	defer tab.Close()
	failpoint.Reached("verify.table-mapped")
	err = region.Guard(func() (err error) {
		bad, err = s.scrubBy(ctx, tab.Bytes(), v, quick, out)
		return err
	})
	if errors.Is(err, zcerr.Fault) {
		err = zcerr.New(zcerr.Corrupt, "table of %s: %w", out.Ref, err).WithHint("put the model again")
	}
	return bad, err
}

// scrubBy is scrub by a table that is mapped.
func (s *Store) scrubBy(ctx context.Context, tab []byte, v *version, quick bool, out *Verified) ([]place, error) {
	t, err := table.Open(tab)
	if err == nil {
		err = t.Verify()
	}
	if err != nil {
		return nil, zcerr.New(zcerr.Corrupt, "table of %s: %w", out.Ref, err).WithHint("put the model again")
	}
	segs := make([]scrubFile, len(v.segs))
	for i, sg := range v.segs {
		f, err := s.openWhole(sg.file(), sg.use.Size)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		segs[i].f = f
		if quick {
			if segs[i].crc, err = readChecksums(f, sg.use.Size); err != nil {
				return nil, zcerr.Wrap("verify", out.Ref, err)
			}
		}
	}
	type broken struct {
		name string
		at   place
	}
	var (
		mu   sync.Mutex
		rows []broken
	)
	check := func(i int, buf []byte) error {
		row, err := t.Tensor(i)
		if err != nil {
			return err
		}
		same := true
		if row.Bytes > 0 {
			if same, err = segs[row.Segment].same(row, quick, buf); err != nil {
				if errors.Is(err, io.EOF) {
					err = zcerr.New(zcerr.Corrupt, "tensor %d: the file was cut while it was read", i).WithHint("put the model again")
				}
				return err
			}
		}
		mu.Lock()
		defer mu.Unlock()
		out.Tensors++
		out.Bytes += uint64(row.Bytes)
		if !same {
			names, err := t.TensorNames(i)
			if err != nil {
				return err
			}
			rows = append(rows, broken{names[0], place{v.segs[row.Segment], row.Offset}})
		}
		return nil
	}
	err = parallel.Each(ctx, runtime.GOMAXPROCS(0), t.Tensors(), func(context.Context) func(int) error {
		buf := make([]byte, scrubBytes)
		return func(i int) error { return region.Guard(func() error { return check(i, buf) }) }
	})
	slices.SortFunc(rows, func(a, b broken) int { return strings.Compare(a.name, b.name) })
	var bad []place
	for _, r := range rows {
		out.Damaged, bad = append(out.Damaged, r.name), append(bad, r.at)
	}
	return bad, err
}

// scrubBytes is how much is read at a time: what the core's cache holds.
const scrubBytes = 256 << 10

// scrubFile is a segment that is being read.
type scrubFile struct {
	f   *os.File
	crc map[uint64]uint32 // of the tensor at an offset; only when quick
}

// same reads a tensor through buf and compares its checksum.
func (s *scrubFile) same(row table.Tensor, quick bool, buf []byte) (bool, error) {
	var crc uint32
	h := sha256.New()
	for at := 0; at < row.Bytes; {
		b := buf[:min(len(buf), row.Bytes-at)]
		if _, err := s.f.ReadAt(b, int64(row.Offset)+int64(at)); err != nil {
			return false, err
		}
		if quick {
			crc = crc32.Update(crc, castagnoli, b)
		} else {
			h.Write(b)
		}
		at += len(b)
	}
	if quick {
		want, ok := s.crc[row.Offset]
		return ok && crc == want, nil
	}
	return bytes.Equal(h.Sum(nil), row.SHA256[:]), nil
}

// readChecksums reads the CRC32C that a segment keeps of each of its tensors, by their offset in the file.
func readChecksums(f *os.File, size uint64) (map[uint64]uint32, error) {
	h, err := safetensors.Read(f, int64(size))
	if err != nil {
		return nil, zcerr.New(zcerr.Corrupt, "the header of a segment: %w", err).WithHint("put the model again")
	}
	text, ok := h.Metadata[metaCRC]
	if !ok {
		return nil, zcerr.New(zcerr.Unsupported, "a segment has no checksums: an older release stored it, or it has too many tensors").WithHint("compare SHA-256 instead: zcctl verify REF, without --quick")
	}
	sums, err := hex.DecodeString(text)
	if err != nil || len(sums) != 4*len(h.Entries) {
		return nil, zcerr.New(zcerr.Corrupt, "the checksums of a segment are not %d in hexadecimal digits", len(h.Entries)).WithHint("put the model again")
	}
	crc := make(map[uint64]uint32, len(h.Entries))
	for i, e := range h.Entries {
		if e.SizeBytes() > 0 {
			crc[uint64(h.DataStart+e.Begin)] = binary.BigEndian.Uint32(sums[4*i:])
		}
	}
	return crc, nil
}

// openWhole opens a file that must have the size it was published with. The caller closes it.
func (s *Store) openWhole(name string, size uint64) (*os.File, error) {
	f, err := s.dir.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, zcerr.New(zcerr.Corrupt, "%w", err).WithHint("put the model again")
	}
	if err != nil {
		return nil, err
	}
	use, err := shm.UsageOf(f)
	if err == nil && use.Size != size {
		err = zcerr.New(zcerr.Corrupt, "a file of %d bytes has %d: it was cut or written behind the daemon's back", size, use.Size).WithHint("put the model again")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// mapFile maps a file that must have the size it was published with.
func (s *Store) mapFile(name string, size uint64) (*shm.Mapping, error) {
	f, err := s.openWhole(name, size)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return shm.Map(f, int(size))
}

// quarantine takes a damaged version, and every other that uses one of the bad places, out of service. Their tags stay and say
// why; a put of the same digest repairs one.
func (s *Store) quarantine(v *version, bad []place, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range s.versions {
		if other != v && !slices.ContainsFunc(other.rows, func(r rowPlace) bool { return slices.Contains(bad, r.place) }) {
			continue
		}
		s.log.Error("quarantined", zap.Stringer("digest", other.digest), zap.Error(why))
		s.takeOutLocked(other, why)
	}
}
