package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/internal/socketpath"
	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/proto/zcerr"
)

const fsckHelp = `fsck looks at what is stored while no daemon runs: the catalog, tables and segments in shared memory and, with --data, the
index and blobs on disk. Everything is read and hashed. It names what is damaged or lost and deletes nothing.

With --rebuild it writes a new catalog of what is whole, and a new index where that cannot be read; the old ones stay
beside them. Names come from the index, then from the old catalog, then from what a version was put as; what has none is
called recovered/DIGEST. What the new catalog does not name is removed at the daemon's next start.

Segments in memfds (zcstored --backing memfd) have no directory and are open to the daemon and its service manager alone: fsck
cannot look at them. The daemon itself does at every start, and 'zcctl verify' reads every byte while it runs. With --data, fsck
looks at what such a daemon has on disk.

Exit 7 when anything is damaged, 4 while a daemon serves.`

const fsckExample = `  zcctl fsck
  zcctl fsck --data /var/lib/zcstore
  zcctl fsck --dir /dev/shm/zcstore-0 --rebuild`

type fsckJSON struct {
	Schema   int           `json:"schema"`
	Bytes    uint64        `json:"bytes"` // read and hashed
	Versions []fsckVersion `json:"versions"`
	Findings []fsckFinding `json:"findings"`
	Damaged  int           `json:"damaged"` // findings that are damage
	Rebuilt  bool          `json:"rebuilt"`
	Kept     []string      `json:"kept"` // old catalogs and indexes
}

type fsckVersion struct {
	Digest   string   `json:"digest"`
	Names    []string `json:"names"`
	InMemory bool     `json:"in_memory"`
	OnDisk   bool     `json:"on_disk"`
}

type fsckFinding struct {
	Where   string `json:"where"` // memory, disk
	What    string `json:"what"`
	Name    string `json:"name"`
	Problem string `json:"problem"`
	Damage  bool   `json:"damage"`
}

func fsckCmd(a *app) *cobra.Command {
	var opt store.FsckOptions
	cmd := &cobra.Command{
		Use: "fsck", Short: "Check what is stored, with no daemon running", GroupID: groupDaemon,
		Long: fsckHelp, Example: fsckExample, Args: args(false), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opt.Dir == "" {
				opt.Dir = socketpath.SegmentDir(a.socket)
			}
			ctx, cancel := a.within(cmd.Context(), 0)
			defer cancel()
			r, err := store.Fsck(ctx, opt)
			var locked *store.LockedError
			if errors.As(err, &locked) {
				return zcerr.New(zcerr.Conflict, "%w", err).WithHint("end the daemon first; with one running, '%s verify' looks at the bytes", a.zcctl())
			}
			if err != nil {
				return err
			}
			return a.printFsck(r, opt)
		},
	}
	f := cmd.Flags()
	f.StringVar(&opt.Dir, "dir", "", "directory of segments (default: one of /dev/shm that belongs to the socket)")
	f.StringVar(&opt.Data, "data", "", "data directory of the daemon, if it has one")
	f.BoolVar(&opt.Rebuild, "rebuild", false, "write a new catalog of what is whole")
	return cmd
}

func (a *app) printFsck(r *store.FsckReport, opt store.FsckOptions) error {
	if a.json() {
		out := fsckJSON{Schema: schema, Bytes: r.Bytes, Versions: []fsckVersion{}, Findings: []fsckFinding{}, Damaged: r.Damaged(), Rebuilt: r.Rebuilt, Kept: some(r.Kept)}
		for _, v := range r.Versions {
			out.Versions = append(out.Versions, fsckVersion{v.Digest.String(), some(v.Names), v.InMemory, v.OnDisk})
		}
		for _, f := range r.Findings {
			out.Findings = append(out.Findings, fsckFinding{f.Where, f.What, f.Name, f.Problem, !f.Note})
		}
		if err := a.emit(out); err != nil {
			return err
		}
		return a.fsckResult(r, opt)
	}
	for _, f := range r.Findings {
		state := "DAMAGED"
		if f.Note {
			state = "note   "
		}
		what := f.What
		if f.Name != "" {
			what += " " + f.Name
		}
		fmt.Fprintf(a.stdout, "%s  %s  %s: %s\n", state, f.Where, what, f.Problem)
	}
	for _, v := range r.Versions {
		name := strings.Join(v.Names, ", ")
		if name == "" {
			name = "(no name)"
		}
		var where []string
		if v.InMemory {
			where = append(where, "memory")
		}
		if v.OnDisk {
			where = append(where, "disk")
		}
		fmt.Fprintf(a.stdout, "ok       %s  %s  in %s\n", name, v.Digest.Short(), strings.Join(where, " and "))
	}
	if r.Rebuilt {
		fmt.Fprintf(a.stdout, "rebuilt: %s named", count(len(r.Versions), "version"))
		if len(r.Kept) > 0 {
			fmt.Fprintf(a.stdout, "; the old ones are kept as %s", strings.Join(r.Kept, ", "))
		}
		fmt.Fprintln(a.stdout)
	}
	if _, err := fmt.Fprintf(a.stdout, "%s read, %s whole, %d damaged\n", units.Bytes(r.Bytes), count(len(r.Versions), "version"), r.Damaged()); err != nil {
		return err
	}
	return a.fsckResult(r, opt)
}

// fsckResult is the exit: what was found damaged stays an error, also when a rebuild went round it.
func (a *app) fsckResult(r *store.FsckReport, opt store.FsckOptions) error {
	n := r.Damaged()
	if n == 0 {
		return nil
	}
	err := zcerr.New(zcerr.Corrupt, "%s", count(n, "finding")+" of damage")
	if r.Rebuilt {
		return err.WithHint("the new catalog leaves out what is damaged; start zcstored, and put those models again")
	}
	cmd := "zcctl fsck --dir " + opt.Dir
	if opt.Data != "" {
		cmd += " --data " + opt.Data
	}
	return err.WithHint("start zcstored and put the damaged models again; when it does not start: %s --rebuild", cmd)
}
