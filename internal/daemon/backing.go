package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/fdstore"
	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm"
)

// openMemfd opens the memfd backing on what the service manager kept of the daemon before.
func openMemfd(log *zap.Logger) (shm.Backing, error) {
	files, err := fdstore.Received()
	if err != nil {
		return nil, err
	}
	var kept []shm.Kept
	var names []string
	for _, f := range files {
		if name := f.Name(); store.IsFile(name) {
			kept = append(kept, shm.Kept{Name: name, File: f})
			names = append(names, name)
			continue
		}
		log.Warn("closed a descriptor that is not of this store", zap.String("name", f.Name()))
		f.Close()
	}
	keeper, err := fdstore.Open(names)
	if err != nil {
		for _, k := range kept {
			k.File.Close()
		}
		return nil, err
	}
	var m *shm.Memfd
	var refused []error
	if keeper == nil { // a nil *Store is no nil Keeper
		log.Warn("nobody keeps descriptors for this daemon: everything stored goes when it ends",
			zap.String("hint", "FileDescriptorStoreMax= in its unit (deploy/zcstored.service)"))
		m, refused = shm.NewMemfd(nil, kept)
	} else {
		m, refused = shm.NewMemfd(keeper, kept)
	}
	for _, err := range refused {
		log.Warn("closed a descriptor", zap.Error(err))
	}
	return m, nil
}

// lockSocket takes the lock of a socket for this process: one daemon for each. The lock goes with release, which also removes
// its file. Errors: Conflict.
func lockSocket(socket string) (release func(), err error) {
	path := socket + ".lock"
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
		f := os.NewFile(uintptr(fd), path)
		err = checkLock(f)
		if err == nil {
			err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			holder, _ := io.ReadAll(io.LimitReader(f, 256))
			f.Close()
			return nil, zcerr.New(zcerr.Conflict, "another daemon (%s) serves %s", strings.TrimSpace(string(holder)), socket).
				WithHint("use it (zcctl --socket %s status), or choose another --socket", socket)
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		var ours, now unix.Stat_t
		if unix.Fstat(fd, &ours) != nil || unix.Lstat(path, &now) != nil || ours.Ino != now.Ino || ours.Dev != now.Dev {
			f.Close() // the one before removed it between our two steps
			continue
		}
		if err := errors.Join(f.Chmod(0o600), f.Truncate(0)); err != nil {
			f.Close()
			return nil, fmt.Errorf("write %s: %w", path, err)
		}
		if _, err := f.WriteAt(fmt.Appendf(nil, "pid %d", os.Getpid()), 0); err != nil {
			f.Close()
			return nil, fmt.Errorf("write %s: %w", path, err)
		}
		return func() { os.Remove(path); f.Close() }, nil
	}
}

func checkLock(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() {
		return zcerr.New(zcerr.Conflict, "%s is there and is no lock of this user", f.Name()).
			WithHint("look who made it (ls -l %s), remove it, or choose a --socket in a directory of your own", filepath.Dir(f.Name()))
	}
	return nil
}
