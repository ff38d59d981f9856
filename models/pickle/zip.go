package pickle

import (
	"bytes"
	"encoding/binary"
	"io"
	"sort"

	"github.com/zcstore/zcstore/proto/zcerr"
)

// Bounds of an archive: one entry for each tensor, and a few more.
const (
	maxEntries   = 1 << 17
	maxDirectory = 32 << 20 // bytes
)

// Signatures, and the lengths of what they begin.
const (
	sigEnd, lenEnd         = 0x06054b50, 22
	sigEnd64, lenEnd64     = 0x06064b50, 56
	sigLocator, lenLocator = 0x07064b50, 20
	sigEntry, lenEntry     = 0x02014b50, 46
	sigLocal, lenLocal     = 0x04034b50, 30
)

// entry is a file in an archive, which lies there as it is.
type entry struct {
	name        string
	start, size int64
	crc         uint32

	header     int64 // where its own header begins
	compressed bool
}

func badZip(format string, args ...any) error {
	return zcerr.New(zcerr.Invalid, "the zip archive is damaged: "+format, args...).WithHint("download the file again")
}

// readDirectory lists the entries of an archive, with the checks that a file from a stranger needs: everything lies inside of the
// file, entries do not overlap, and nothing follows the end. Nothing is ever inflated.
func readDirectory(r io.ReaderAt, size int64) ([]entry, error) {
	at, length, count, err := findDirectory(r, size)
	if err != nil {
		return nil, err
	}
	if count > maxEntries || length > maxDirectory {
		return nil, zcerr.New(zcerr.Invalid, "the zip archive has %d entries in a directory of %d bytes, at most %d and %d are read", count, length, maxEntries, maxDirectory)
	}
	dir := make([]byte, length)
	if _, err := r.ReadAt(dir, at); err != nil {
		return nil, err
	}
	entries := make([]entry, 0, min(count, length/lenEntry))
	for len(dir) > 0 {
		e, n, err := readEntry(dir)
		if err != nil {
			return nil, err
		}
		dir = dir[n:]
		if len(entries) == maxEntries {
			return nil, badZip("it has more entries than it says")
		}
		entries = append(entries, e)
	}
	if int64(len(entries)) != count {
		return nil, badZip("it has %d entries and says %d", len(entries), count)
	}
	return entries, place(r, entries, at)
}

// findDirectory reads the end of an archive.
func findDirectory(r io.ReaderAt, size int64) (at, length, count int64, err error) {
	tail := make([]byte, min(size, lenEnd+1<<16))
	if _, err := r.ReadAt(tail, size-int64(len(tail))); err != nil {
		return 0, 0, 0, err
	}
	le := binary.LittleEndian
	i := len(tail) - lenEnd
	for ; i >= 0; i-- {
		if le.Uint32(tail[i:]) == sigEnd && i+lenEnd+int(le.Uint16(tail[i+20:])) == len(tail) {
			break
		}
	}
	if i < 0 {
		return 0, 0, 0, badZip("it has no end")
	}
	end := tail[i:]
	stop := size - int64(len(tail)) + int64(i)
	count, length, at = int64(le.Uint16(end[10:])), int64(le.Uint32(end[12:])), int64(le.Uint32(end[16:]))
	if i >= lenLocator && le.Uint32(tail[i-lenLocator:]) == sigLocator {
		stop = int64(le.Uint64(tail[i-lenLocator+8:]))
		b := make([]byte, lenEnd64)
		if stop < 0 || stop > size-lenEnd64 {
			return 0, 0, 0, badZip("its end is said to be at byte %d", stop)
		}
		if _, err := r.ReadAt(b, stop); err != nil {
			return 0, 0, 0, err
		}
		if le.Uint32(b) != sigEnd64 {
			return 0, 0, 0, badZip("its end is not where it is said to be")
		}
		count, length, at = int64(le.Uint64(b[32:])), int64(le.Uint64(b[40:])), int64(le.Uint64(b[48:]))
	}
	if count < 0 || length < 0 || at < 0 || at > stop || length != stop-at {
		return 0, 0, 0, badZip("its directory of %d bytes at byte %d does not lie before its end at byte %d", length, at, stop)
	}
	return at, length, count, nil
}

// readEntry reads the first entry of a directory and says how long it is.
func readEntry(b []byte) (entry, int, error) {
	le := binary.LittleEndian
	if len(b) < lenEntry || le.Uint32(b) != sigEntry {
		return entry{}, 0, badZip("an entry of its directory does not begin as one")
	}
	nameLen, extraLen, commentLen := int(le.Uint16(b[28:])), int(le.Uint16(b[30:])), int(le.Uint16(b[32:]))
	n := lenEntry + nameLen + extraLen + commentLen
	if n > len(b) {
		return entry{}, 0, badZip("an entry goes beyond its directory")
	}
	packed, size := uint64(le.Uint32(b[20:])), uint64(le.Uint32(b[24:]))
	e := entry{name: string(b[lenEntry : lenEntry+nameLen]), crc: le.Uint32(b[16:])}
	header := uint64(le.Uint32(b[42:]))
	for extra := b[lenEntry+nameLen : lenEntry+nameLen+extraLen]; len(extra) >= 4; {
		id, l := le.Uint16(extra), int(le.Uint16(extra[2:]))
		if extra = extra[4:]; l > len(extra) {
			break
		}
		if id == 1 { // the fields that do not fit in 32 bits
			field := extra[:l]
			for _, v := range []*uint64{&size, &packed, &header} {
				if *v == 1<<32-1 && len(field) >= 8 {
					*v, field = le.Uint64(field), field[8:]
				}
			}
		}
		extra = extra[l:]
	}
	if size > 1<<62 || header > 1<<62 {
		return entry{}, 0, badZip("entry %q has %d bytes at byte %d", e.name, size, header)
	}
	e.size, e.header = int64(size), int64(header)
	e.compressed = le.Uint16(b[10:]) != 0 || packed != size || le.Uint16(b[8:])&1 != 0
	return e, n, nil
}

// place finds where the entries' bytes begin, which only their own headers say.
func place(r io.ReaderAt, entries []entry, end int64) error {
	byPlace := make([]*entry, len(entries))
	le := binary.LittleEndian
	for i := range entries {
		e := &entries[i]
		byPlace[i] = e
		var b [lenLocal]byte
		if e.header > end-lenLocal {
			return badZip("entry %q is said to be at byte %d", e.name, e.header)
		}
		if _, err := r.ReadAt(b[:], e.header); err != nil {
			return err
		}
		name := make([]byte, le.Uint16(b[26:]))
		if _, err := r.ReadAt(name, e.header+lenLocal); err != nil || le.Uint32(b[:]) != sigLocal || !bytes.Equal(name, []byte(e.name)) {
			return badZip("entry %q is not where it is said to be", e.name)
		}
		e.start = e.header + lenLocal + int64(len(name)) + int64(le.Uint16(b[28:]))
	}
	sort.Slice(byPlace, func(i, j int) bool { return byPlace[i].header < byPlace[j].header })
	for i, e := range byPlace {
		next := end
		if i+1 < len(byPlace) {
			next = byPlace[i+1].header
		}
		if e.compressed {
			continue // whose bytes are not read
		}
		if e.start > next || e.size > next-e.start {
			return badZip("entry %q has %d bytes at byte %d, and something else begins at byte %d", e.name, e.size, e.start, next)
		}
	}
	return nil
}
