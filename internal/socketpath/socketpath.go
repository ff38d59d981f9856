// Package socketpath says where the daemon listens and keeps its segments when nobody said otherwise, the same for the
// daemon, the tools and the SDK.
package socketpath

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
)

// Env names the socket for every program of the project.
const Env = "ZCSTORE_SOCKET"

// Default is $ZCSTORE_SOCKET; else the system's socket for root; else the user's, in $XDG_RUNTIME_DIR or /tmp.
func Default() string {
	if s := os.Getenv(Env); s != "" {
		return s
	}
	return Usual()
}

// Usual is Default without regard to the environment.
func Usual() string {
	if os.Geteuid() == 0 {
		return "/run/zcstore/zcstored.sock"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "zcstore", "zcstored.sock")
	}
	return filepath.Join(os.TempDir(), "zcstore-"+strconv.Itoa(os.Geteuid()), "zcstored.sock")
}

// SegmentDir is the directory of segments that belongs to a socket: one daemon, one directory, found again after a restart.
func SegmentDir(socket string) string {
	if abs, err := filepath.Abs(socket); err == nil {
		socket = abs
	}
	sum := sha256.Sum256([]byte(socket))
	return filepath.Join("/dev/shm", "zcstore-"+strconv.Itoa(os.Geteuid())+"-"+hex.EncodeToString(sum[:6]))
}
