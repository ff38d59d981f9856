package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/units"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

const statusHelp = `status tells what the daemon is, what it guarantees and what it holds. Bytes used are the kernel's block
counts, each segment once. With a file system of its own, used_bytes + overhead_bytes + held_after_delete_bytes +
reserved_bytes + orphaned_bytes is what statfs calls used.`

const statusExample = `  zcctl status
  zcctl status -o json | jq .used_bytes`

type statusJSON struct {
	Schema               int          `json:"schema"`
	Socket               string       `json:"socket"`
	Version              string       `json:"version"`
	PID                  int32        `json:"pid"`
	UID                  uint32       `json:"uid"`
	Instance             string       `json:"instance"`
	Started              *time.Time   `json:"started"`
	Protocol             uint32       `json:"protocol"`
	TableVersion         uint32       `json:"table_version"`
	SegmentFormat        uint32       `json:"segment_format"`
	Backing              string       `json:"backing"`
	Directory            string       `json:"directory"`
	Guarantee            string       `json:"guarantee"`
	Durability           string       `json:"durability"`
	CapacityBytes        uint64       `json:"capacity_bytes"`
	FreeBytes            uint64       `json:"free_bytes"`
	UsedBytes            uint64       `json:"used_bytes"`
	HeldAfterDeleteBytes uint64       `json:"held_after_delete_bytes"`
	Models               uint32       `json:"models"`
	Versions             uint32       `json:"versions"`
	Segments             uint32       `json:"segments"`
	Leases               uint32       `json:"leases"`
	Clients              uint32       `json:"clients"`
	OpenPuts             uint32       `json:"open_puts"`
	AdoptedVersions      uint32       `json:"adopted_versions"`
	Guards               guardsJSON   `json:"guards"`
	OverheadBytes        uint64       `json:"overhead_bytes"`
	ReservedBytes        uint64       `json:"reserved_bytes"`
	OrphanedBytes        uint64       `json:"orphaned_bytes"`
	OwnMount             bool         `json:"own_mount"`
	DataDirectory        string       `json:"data_directory"`
	DataBytes            uint64       `json:"data_bytes"`
	DataFreeBytes        uint64       `json:"data_free_bytes"`
	DataReadOnly         string       `json:"data_read_only"`
	ColdVersions         uint32       `json:"cold_versions"`
	UnwrittenVersions    uint32       `json:"unwritten_versions"`
	Limits               limitsJSON   `json:"limits"`
	Forms                []statusForm `json:"forms"` // made of versions; part of used_bytes
}

func statusCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "What the daemon is and holds", GroupID: groupDaemon,
		Long: statusHelp, Example: statusExample, Args: args(false), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd, func(ctx context.Context, c *client.Client) error {
				st, err := c.Status(ctx)
				if err != nil {
					return err
				}
				if a.json() {
					return a.emit(statusJSON{
						schema, c.Socket(), st.Version, st.Pid, st.Uid, st.Instance, stamp(st.StartedUnixMs), st.Protocol, st.TableVersion, st.SegmentFormat,
						st.Backing, st.Directory, st.Guarantee, st.Durability, st.CapacityBytes, st.FreeBytes, st.UsedBytes, st.HeldAfterDeleteBytes,
						st.Models, st.Versions, st.Segments, st.Leases, st.Clients, st.OpenPuts, st.AdoptedVersions,
						guardsOf(st.Guards), st.OverheadBytes, st.ReservedBytes, st.OrphanedBytes, st.OwnMount,
						st.DataDirectory, st.DataBytes, st.DataFreeBytes, st.DataReadOnly, st.ColdVersions, st.UnwrittenVersions,
						limitsOf(st.Limits), statusForms(st),
					})
				}
				return a.printStatus(c.Socket(), st)
			})
		},
	}
}

func (a *app) printStatus(socket string, st *zcstorev1.StatusReply) error {
	g := newGrid(a.stdout, "")
	g.row("daemon", fmt.Sprintf("zcstored %s, pid %d, uid %d, up %s", st.Version, st.Pid, st.Uid, age(st.StartedUnixMs)))
	g.row("speaks", fmt.Sprintf("protocol %d, table %d, segment format %d", st.Protocol, st.TableVersion, st.SegmentFormat))
	g.row("socket", socket)
	g.row("segments", st.Directory)
	g.row("weights", st.Guarantee)
	g.row("lifetime", st.Durability)
	g.row("pages", pageWords(st.Guards, st.UsedBytes))
	g.row("memory", fmt.Sprintf("%s used, %s free of %s", units.Bytes(st.UsedBytes), units.Bytes(st.FreeBytes), units.Bytes(st.CapacityBytes)))
	formRows(g, st)
	if st.HeldAfterDeleteBytes > 0 {
		g.row("", fmt.Sprintf("%s more of removed versions, held by workers: %s ps", units.Bytes(st.HeldAfterDeleteBytes), a.zcctl()))
	}
	if st.ReservedBytes > 0 {
		g.row("", fmt.Sprintf("%s more reserved by open puts", units.Bytes(st.ReservedBytes)))
	}
	if st.OrphanedBytes > 0 {
		g.row("", fmt.Sprintf("%s more of removed versions, mapped by processes without a lease: it comes back when they end", units.Bytes(st.OrphanedBytes)))
	}
	if st.OwnMount {
		g.row("", "on a file system of its own: all of this is what statfs calls used")
	}
	if st.DataDirectory != "" {
		g.row("disk", fmt.Sprintf("%s used in %s, %s free", units.Bytes(st.DataBytes), st.DataDirectory, units.Bytes(st.DataFreeBytes)))
		if st.ColdVersions > 0 {
			g.row("", count(st.ColdVersions, "version")+" only there, loaded when somebody attaches")
		}
		if st.UnwrittenVersions > 0 {
			g.row("", count(st.UnwrittenVersions, "version")+" in memory only so far: the log says why, when this does not go away")
		}
	}
	g.row("holds", fmt.Sprintf("%s, %s, %s", count(st.Models, "model"), count(st.Versions, "version"), count(st.Segments, "segment")))
	g.row("serves", fmt.Sprintf("%s of %s, %s", count(st.Leases, "lease"), count(st.Clients, "client"), count(st.OpenPuts, "open put")))
	if st.AdoptedVersions > 0 {
		g.row("adopted", count(st.AdoptedVersions, "version")+" of the daemon before")
	}
	return g.flush()
}

// count writes a number with its noun.
func count[T ~int | ~uint32](n T, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
