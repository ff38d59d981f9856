package client

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// EnvServerUID names the user, by name or number, that the daemon may run as beside those TrustServer knows.
const EnvServerUID = "ZCSTORE_SERVER_UID"

// TrustServer decides whether a process of this uid may be the daemon on a socket: whoever it is hands out the weights. It
// may be root; this process's own user; the user that $ZCSTORE_SERVER_UID names; and the owner of the socket's directory,
// when only root can have given it that directory, as systemd does for a service of its own user.
func TrustServer(socket string, uid uint32) error {
	if uid == 0 || int(uid) == os.Geteuid() {
		return nil
	}
	if name := os.Getenv(EnvServerUID); name != "" {
		want, err := uidOf(name)
		if err != nil {
			return err
		}
		if want == uid {
			return nil
		}
	}
	if owner, ok := grantedByRoot(filepath.Dir(socket)); ok && owner == uid {
		return nil
	}
	return fmt.Errorf("it runs as uid %d; trusted are root, uid %d, $%s, and the owner of a socket directory that root made", uid, os.Geteuid(), EnvServerUID)
}

func uidOf(name string) (uint32, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, fmt.Errorf("$%s is %q: %w", EnvServerUID, name, err)
	}
	n, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(n), err
}

// grantedByRoot gives the owner of a directory that nobody but root can have put where it is: every directory above it
// belongs to root and is writable by root alone.
func grantedByRoot(dir string) (owner uint32, ok bool) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return 0, false
	}
	st, err := lstat(dir)
	if err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFDIR || st.Mode&0o002 != 0 {
		return 0, false
	}
	for up := dir; up != "/"; {
		up = filepath.Dir(up)
		above, err := lstat(up)
		if err != nil || above.Mode&syscall.S_IFMT != syscall.S_IFDIR || above.Uid != 0 || above.Mode&0o022 != 0 {
			return 0, false
		}
	}
	return st.Uid, true
}

func lstat(path string) (syscall.Stat_t, error) {
	var st syscall.Stat_t
	err := syscall.Lstat(path, &st)
	return st, err
}
