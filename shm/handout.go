package shm

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// HandOutThrough has Open open files by way of path, which must be a read-only bind mount of this same directory. A
// descriptor that comes through it can neither be reopened for writing nor have its mode changed, whoever tries: the mount
// refuses (EROFS). The files keep their names in the writable directory, which is then the only way to them. It is called
// before the directory is in use, and once.
func (d *Dir) HandOutThrough(path string) error {
	fd, err := unix.Open(path, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open hand-out directory %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	if err := d.checkHandout(f); err != nil {
		f.Close()
		return err
	}
	d.handout = f
	return nil
}

func (d *Dir) checkHandout(f *os.File) error {
	var ours, theirs unix.Stat_t
	if err := unix.Fstat(int(d.f.Fd()), &ours); err != nil {
		return fmt.Errorf("stat %s: %w", d.path, err)
	}
	if err := unix.Fstat(int(f.Fd()), &theirs); err != nil {
		return fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	if ours.Dev != theirs.Dev || ours.Ino != theirs.Ino {
		return fmt.Errorf("hand-out directory %s is not the segment directory %s seen through another mount", f.Name(), d.path)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return fmt.Errorf("statfs %s: %w", f.Name(), err)
	}
	if fs.Flags&unix.ST_RDONLY == 0 {
		return fmt.Errorf("hand-out directory %s is not mounted read-only", f.Name())
	}
	return nil
}

// readDir is where published files are opened.
func (d *Dir) readDir() *os.File {
	if d.handout != nil {
		return d.handout
	}
	return d.f
}
