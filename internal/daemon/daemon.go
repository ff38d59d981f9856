// Package daemon is zcstored as a function, so that the daemon's own command, `zcctl demo` and the tests run the same one.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/limits"
	"github.com/zcstore/zcstore/internal/server"
	"github.com/zcstore/zcstore/internal/socketpath"
	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm"
)

// Config is what a daemon is started with. The zero value serves the default socket.
type Config struct {
	Socket  string // empty: socketpath.Default
	Dir     string // segments; empty: the directory of /dev/shm that belongs to the socket
	Backing string // shm.KindShm or shm.KindMemfd; empty: the first
	// HandoutDir is a read-only bind mount of Dir, through which files are opened for clients; empty: none.
	HandoutDir string
	Data       string        // directory of the durable tier; empty: memory only
	MaxBytes   uint64        // budget for segments and tables; 0: what the file system has
	Limits     limits.Limits // zero fields: the defaults
	Access     server.Access // who may use it beside root, the daemon's user and the socket's group
	Dev        bool          // talk to a person at the terminal
	Ephemeral  bool          // remove the segments at the end (demo, tests)
	LogFormat  string        // "json" or "text"
	LogLevel   string        // debug, info, warn, error
	Out        io.Writer     // what Dev tells; nil: nobody
	Log        io.Writer     // log lines; nil: nobody
	Ready      func()        // called once it serves
}

// Harden is for processes that are nothing but a daemon: no other process of this uid may trace it or open its descriptors,
// it dumps no core, and its files have the modes that the code gives them, whatever umask it was started under.
func Harden() error {
	unix.Umask(0o022)
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	return nil
}

// Run serves until ctx ends. It returns nil after an orderly end. Errors: Conflict when another daemon has the socket or the
// directory; Corrupt when the catalog cannot be read.
func Run(ctx context.Context, cfg Config) (err error) {
	if cfg.Socket == "" {
		cfg.Socket = socketpath.Default()
	}
	if cfg.Dir == "" {
		cfg.Dir = socketpath.SegmentDir(cfg.Socket)
	}
	log, err := newLogger(cfg)
	if err != nil {
		return err
	}
	lim, err := cfg.Limits.Complete()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(cfg.Socket), 0o755); err != nil {
		return fmt.Errorf("make the socket's directory: %w", err)
	}
	unlock, err := lockSocket(cfg.Socket)
	if err != nil {
		return err
	}
	defer unlock()
	var backing shm.Backing
	switch cfg.Backing {
	case "", shm.KindShm:
	case shm.KindMemfd:
		if cfg.HandoutDir != "" {
			return zcerr.New(zcerr.Invalid, "a hand-out directory is for --backing shm: memfds are sealed and have no directory").WithHint("leave --handout-dir away")
		}
		if backing, err = openMemfd(log); err != nil {
			return err
		}
	default:
		return zcerr.New(zcerr.Invalid, "backing %q is none of shm, memfd", cfg.Backing).WithHint("zcstored --help")
	}
	st, err := store.Open(store.Options{Dir: cfg.Dir, HandoutDir: cfg.HandoutDir, Backing: backing, Data: cfg.Data, MaxBytes: cfg.MaxBytes, MaxPuts: lim.Puts, MaxBytesPerUID: lim.BytesPerUID, Log: log})
	if err != nil {
		var locked *store.LockedError
		if errors.As(err, &locked) {
			flag := "--dir"
			if locked.Data {
				flag = "--data"
			}
			return zcerr.New(zcerr.Conflict, "%w", err).WithHint("use that daemon, with the --socket it was started with, or choose another %s", flag)
		}
		return err
	}
	defer func() {
		err = errors.Join(err, st.Close())
		if cfg.Ephemeral {
			err = errors.Join(err, os.RemoveAll(cfg.Dir))
		}
	}()
	ln, err := server.Listen(cfg.Socket)
	if err != nil {
		return err
	}
	status, err := st.Status()
	if err != nil {
		ln.Close()
		return err
	}
	log.Info("serving", zap.String("socket", cfg.Socket), zap.String("backing", status.Backing), zap.String("dir", status.Directory), zap.Int("adopted", status.Adopted),
		zap.Uint64("free_bytes", status.Free), zap.String("version", Version()))
	if cfg.Dev && cfg.Out != nil {
		greet(cfg.Out, cfg, status)
	}
	if _, err := sd.SdNotify(false, sd.SdNotifyReady); err != nil {
		log.Warn("notify the service manager", zap.Error(err))
	}
	if cfg.Ready != nil {
		cfg.Ready()
	}
	err = server.NewWith(st, log, Version(), lim, cfg.Access).Serve(ctx, ln)
	_, _ = sd.SdNotify(false, sd.SdNotifyStopping)
	log.Info("ended", zap.Duration("after", time.Since(status.Started)), zap.Error(err))
	return err
}

// smallShm is what a container gets without --shm-size; with twice that, one small model still fits.
const smallShm = 128 << 20

func greet(w io.Writer, cfg Config, st store.Status) {
	fmt.Fprintf(w, "zcstored %s serves %s\n", Version(), cfg.Socket)
	fmt.Fprintf(w, "  segments  %s (%s free of %s)\n", st.Directory, units.Bytes(st.Free), units.Bytes(st.Capacity))
	fmt.Fprintf(w, "  weights   %s\n", st.Guarantee)
	fmt.Fprintf(w, "  lifetime  %s\n", st.Durability)
	if st.Cold > 0 {
		fmt.Fprintf(w, "  on disk   %d versions are loaded when they are needed\n", st.Cold)
	}
	if st.Adopted > 0 {
		fmt.Fprintf(w, "  adopted   %d stored versions\n", st.Adopted)
	}
	if st.Damaged > 0 {
		fmt.Fprintf(w, "  damaged   %d versions are not served: zcctl ls says why\n", st.Damaged)
	}
	if st.Capacity < smallShm {
		fmt.Fprintf(w, "\nwarning: shared memory here has only %s, as in a container with default settings. Models that do not fit are refused.\n"+
			"  give it more: docker run --shm-size=4g ..., in Kubernetes an emptyDir with medium Memory on /dev/shm, or mount -o remount,size=4g /dev/shm\n", units.Bytes(st.Capacity))
	}
	flag := ""
	if cfg.Socket != socketpath.Usual() { // the other terminal has another environment
		flag = " --socket " + cfg.Socket
	}
	fmt.Fprintf(w, "\nNext, in another terminal:\n  zcctl%s put NAME DIR      # DIR: a Hugging Face or sentence-transformers directory\n  zcctl%s status\n\nCtrl-C ends the daemon; what is stored %s.\n", flag, flag, fate(st))
}

// fate is what an end of the daemon means for what is stored.
func fate(st store.Status) string {
	if st.Guards.SurvivesRestart {
		return "stays for the next start"
	}
	return "goes with it"
}

func newLogger(cfg Config) (*zap.Logger, error) {
	if cfg.Log == nil {
		return zap.NewNop(), nil
	}
	level := zapcore.InfoLevel
	if cfg.LogLevel != "" {
		if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
			return nil, zcerr.New(zcerr.Invalid, "log level %q is none of debug, info, warn, error", cfg.LogLevel)
		}
	}
	enc := zap.NewProductionEncoderConfig()
	enc.EncodeTime = zapcore.RFC3339TimeEncoder
	enc.EncodeDuration = zapcore.StringDurationEncoder
	var e zapcore.Encoder
	switch cfg.LogFormat {
	case "", "json":
		e = zapcore.NewJSONEncoder(enc)
	case "text":
		e = zapcore.NewConsoleEncoder(enc)
	default:
		return nil, zcerr.New(zcerr.Invalid, "log format %q is none of json, text", cfg.LogFormat)
	}
	return zap.New(zapcore.NewCore(e, zapcore.AddSync(cfg.Log), level)), nil
}

// Version is the module's version, as the build knows it.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}
