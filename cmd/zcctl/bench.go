package main

import "github.com/spf13/cobra"

const benchHelp = `bench measures this machine. Every figure stands beside what the machine can do at most in the same minute, and says
which share of it that is: shares travel from machine to machine, seconds do not.`

const benchExample = `  zcctl bench compute
  zcctl bench infer minilm`

func benchCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "bench", Short: "Measure this machine", GroupID: groupDaemon, Long: benchHelp, Example: benchExample,
		Args: unknownCommand, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddGroup(&cobra.Group{ID: groupDaemon, Title: "What to measure:"})
	cmd.AddCommand(benchInferCmd(a), benchComputeCmd(a))
	return cmd
}
