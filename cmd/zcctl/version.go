package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/daemon"
	"github.com/zcstore/zcstore/models/table"
)

const versionHelp = `version prints the version of this program and of what it speaks. It asks no daemon; status does.`

const versionExample = `  zcctl version
  zcctl version -o json`

type versionJSON struct {
	Schema       int    `json:"schema"`
	Version      string `json:"version"`
	Go           string `json:"go"`
	Platform     string `json:"platform"`
	Protocol     int    `json:"protocol"`
	TableVersion int    `json:"table_version"`
}

func versionCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "The version of this program", GroupID: groupDaemon,
		Long: versionHelp, Example: versionExample, Args: args(false),
		RunE: func(*cobra.Command, []string) error {
			v := versionJSON{schema, daemon.Version(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH, client.Protocol, table.Version}
			if a.json() {
				return a.emit(v)
			}
			_, err := fmt.Fprintf(a.stdout, "zcctl %s (%s %s), protocol %d, table %d\n", v.Version, v.Go, v.Platform, v.Protocol, v.TableVersion)
			return err
		},
	}
}
