package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/units"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

const lsHelp = `ls lists the stored versions, or those of one model, oldest first. SIZE is the tensors, each once: versions
that share bytes both count them ('zcctl status' has what the store really uses). HOLDERS is the number of
leases; 'zcctl ps' names them. With a data directory, WHERE tells whether a version is in memory now: one that is only on
disk is loaded when somebody attaches; one that is pinned stays in memory (zcctl pin). FORMS tells what was made of a version for
workers and is in memory beside it; it is not part of SIZE. A tag with a form in brackets hands out that form.

A version that is damaged is marked, and standard error says why. With --all, versions that were removed
but that workers still hold are listed too.`

const lsExample = `  zcctl ls
  zcctl ls minilm --all
  zcctl rm $(zcctl ls -q minilm)`

type lsJSON struct {
	Schema   int           `json:"schema"`
	Versions []versionInfo `json:"versions"`
}

// versionInfo is a version in JSON.
type versionInfo struct {
	Ref         string            `json:"ref"` // NAME@sha256:DIGEST
	Name        string            `json:"name"`
	Tags        []string          `json:"tags"`
	Digest      string            `json:"digest"`
	Kind        string            `json:"kind"`
	Tensors     uint32            `json:"tensors"`
	TensorBytes uint64            `json:"tensor_bytes"`
	TableBytes  uint64            `json:"table_bytes"`
	Holders     uint32            `json:"holders"`
	Created     *time.Time        `json:"created"`
	Deleted     bool              `json:"deleted"`
	Damaged     string            `json:"damaged"`
	Resident    bool              `json:"resident"`
	OnDisk      bool              `json:"on_disk"`
	Pinned      bool              `json:"pinned"`
	Segments    []segment         `json:"segments"`
	Forms       []formJSON        `json:"forms"`     // made of it, and in memory
	TagForms    map[string]string `json:"tag_forms"` // default form of a tag, where that is not plain
}

type segment struct {
	ID        string     `json:"id"`
	SizeBytes uint64     `json:"size_bytes"`
	UsedBytes uint64     `json:"used_bytes"`
	Inode     uint64     `json:"inode"`
	Versions  uint32     `json:"versions"`
	Guarantee string     `json:"guarantee"`
	Guards    guardsJSON `json:"guards"`
}

func infoOf(v *zcstorev1.VersionInfo) versionInfo {
	out := versionInfo{
		Ref: exactRef(v), Name: v.Name, Tags: some(v.Tags), Digest: client.Digest(v.Digest).String(), Kind: v.Kind,
		Tensors: v.Tensors, TensorBytes: v.TensorBytes, TableBytes: v.TableBytes, Holders: v.Holders,
		Created: stamp(v.CreatedUnixMs), Deleted: v.Deleted, Damaged: v.Damaged, Resident: v.Resident, OnDisk: v.OnDisk, Pinned: v.Pinned, Segments: segmentsOf(v.Segments),
		Forms: formsOf(v), TagForms: tagFormsOf(v),
	}
	return out
}

func segmentsOf(list []*zcstorev1.SegmentInfo) []segment {
	out := []segment{}
	for _, s := range list {
		out = append(out, segment{s.Id, s.SizeBytes, s.UsedBytes, s.Inode, s.Versions, s.Guarantee, guardsOf(s.Guards)})
	}
	return out
}

// exactRef names one version, whatever its tags do.
func exactRef(v *zcstorev1.VersionInfo) string {
	return v.Name + "@" + client.Digest(v.Digest).String()
}

func lsCmd(a *app) *cobra.Command {
	var all, quiet bool
	cmd := &cobra.Command{
		Use: "ls [NAME]", Short: "List what is stored", GroupID: groupModels,
		Long: lsHelp, Example: lsExample, Args: atMostOne("NAME"), ValidArgsFunction: a.completeRefs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd, func(ctx context.Context, c *client.Client) error {
				versions, err := c.List(ctx, first(args), all)
				if err != nil {
					return err
				}
				return a.printVersions(versions, quiet)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&all, "all", false, "also versions that were removed and are still held")
	f.BoolVarP(&quiet, "quiet", "q", false, "references only, NAME@sha256:DIGEST")
	return cmd
}

func (a *app) printVersions(versions []*zcstorev1.VersionInfo, quiet bool) error {
	switch {
	case quiet:
		for _, v := range versions {
			if !v.Deleted { // has no reference any more
				fmt.Fprintln(a.stdout, exactRef(v))
			}
		}
		return nil
	case a.json():
		out := lsJSON{Schema: schema, Versions: []versionInfo{}}
		for _, v := range versions {
			out.Versions = append(out.Versions, infoOf(v))
		}
		return a.emit(out)
	case len(versions) == 0:
		a.talk("nothing is stored yet. Store a model: %s put NAME DIR", a.zcctl())
		return nil
	}
	// Where a version lies is a question only where there is more than one answer.
	where := slices.ContainsFunc(versions, func(v *zcstorev1.VersionInfo) bool { return v.OnDisk || v.Pinned })
	head := []string{"NAME", "TAGS", "DIGEST", "KIND", "TENSORS", "SIZE", "HOLDERS", "CREATED"}
	if where {
		head = append(head, "WHERE")
	}
	forms := slices.ContainsFunc(versions, func(v *zcstorev1.VersionInfo) bool { return len(v.Forms) > 0 })
	if forms {
		head = append(head, "FORMS")
	}
	g := newGrid(a.stdout, "", head...)
	for _, v := range versions {
		tags, digest := strings.Join(tagWords(v), ","), client.Digest(v.Digest).Short()
		if v.Deleted {
			tags = "(deleted)"
		}
		if v.Damaged != "" {
			g.row(v.Name, tags, digest, "DAMAGED", "-", "-", "-", age(v.CreatedUnixMs))
			continue
		}
		row := []any{v.Name, tags, digest, v.Kind, v.Tensors, units.Bytes(v.TensorBytes), v.Holders, age(v.CreatedUnixMs)}
		if where {
			row = append(row, whereWords(v))
		}
		if forms {
			row = append(row, formWords(v))
		}
		g.row(row...)
	}
	if err := g.flush(); err != nil {
		return err
	}
	for _, v := range versions {
		if v.Damaged != "" {
			at := v.Name + ":" + first(v.Tags)
			a.talk("damaged: %s: %s", at, v.Damaged)
			a.talk("  put it again (%s put %s DIR --replace), or remove it: %s rm %s", a.zcctl(), at, a.zcctl(), at)
		}
	}
	return nil
}

// formWords says in which forms a version is in memory, and how large those are that were made of it.
func formWords(v *zcstorev1.VersionInfo) string {
	var words []string
	if v.Resident {
		words = append(words, "plain")
	}
	for _, f := range v.Forms {
		words = append(words, f.Form+" "+units.Bytes(f.Bytes))
	}
	return strings.Join(words, ", ")
}

// whereWords says where a version lies.
func whereWords(v *zcstorev1.VersionInfo) string {
	var words []string
	if v.Resident {
		words = append(words, "memory")
	}
	if v.OnDisk {
		words = append(words, "disk")
	}
	if v.Pinned {
		words = append(words, "pinned")
	}
	return strings.Join(words, "+")
}
