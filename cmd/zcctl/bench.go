package main

import "github.com/spf13/cobra"

func benchCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "bench", Short: "Measure this machine", GroupID: groupDaemon, Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(benchInferCmd(a))
	return cmd
}
