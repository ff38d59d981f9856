package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/daemon"
	"github.com/zcstore/zcstore/internal/socketpath"
	"github.com/zcstore/zcstore/proto/zcerr"
)

const rootHelp = `zcctl stores models in a zcstore daemon, once per machine, and says what it holds and who uses it.

A model is named NAME, NAME:TAG or NAME@sha256:DIGEST; a bare NAME is NAME:latest. Data goes to
standard output, talk to standard error. With -o json both are JSON, errors included.

Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 not found, 4 in the way or in use, 5 no daemon,
6 does not fit, 7 damaged, 8 too slow, 9 not allowed, 10 not supported, 130 interrupted.`

const rootExample = `  zcstored --dev                            # in another terminal
  zcctl put minilm ./all-MiniLM-L6-v2       # a Hugging Face or sentence-transformers directory
  zcctl ls
  zcctl show minilm
  zcctl ps                                  # which processes have it mapped`

// The groups of commands in the help.
const (
	groupModels = "models"
	groupUse    = "use"
	groupDaemon = "daemon"
)

// commands lists every command, in the order of the help. Each is a function of one file.
var commands = []func(*app) *cobra.Command{
	putCmd, lsCmd, showCmd, tagCmd, rmCmd, verifyCmd, pinCmd,
	psCmd, inferCmd, tokenizeCmd, demoCmd,
	statusCmd, doctorCmd, benchCmd, fsckCmd, versionCmd, daemonCmd, demoDaemonCmd,
}

// app is what every command gets: the global flags, and where output goes.
type app struct {
	socket  string
	output  string // "table" or "json"
	timeout time.Duration

	stdout, stderr io.Writer
	started        bool // a command runs; errors before are of usage
}

// quick bounds commands that ask the daemon a question, unless --timeout says otherwise.
const quick = 30 * time.Second

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "zcctl",
		Short:         "Store models in shared memory, and see who uses them",
		Long:          rootHelp,
		Example:       rootExample,
		Version:       daemon.Version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          unknownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "table" && a.output != "json" {
				return fmt.Errorf("-o %s is none of table, json", a.output)
			}
			if a.timeout < 0 {
				return fmt.Errorf("--timeout %v is negative", a.timeout)
			}
			a.started = true
			return nil
		},
		SuggestionsMinimumDistance: 2,
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	f := root.PersistentFlags()
	f.StringVar(&a.socket, "socket", socketpath.Default(), "the daemon's Unix socket ($"+socketpath.Env+")")
	f.StringVarP(&a.output, "output", "o", "table", "table or json")
	f.DurationVar(&a.timeout, "timeout", 0, "give up after this long, as in 5s (default: 30s; none for put)")
	f.SortFlags = false
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	root.AddGroup(&cobra.Group{ID: groupModels, Title: "Models:"}, &cobra.Group{ID: groupUse, Title: "Use:"}, &cobra.Group{ID: groupDaemon, Title: "Daemon and machine:"})
	for _, c := range commands {
		root.AddCommand(c(a))
	}
	root.SetHelpCommandGroupID(groupDaemon)
	root.SetCompletionCommandGroupID(groupDaemon)
	root.InitDefaultCompletionCmd()
	if c, _, err := root.Find([]string{"completion"}); err == nil {
		c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() } // so that a shell it does not know is an error
	}
	return root
}

// unknownCommand refuses arguments of zcctl itself, and names the nearest commands.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if len(args[0]) <= 3 {
		cmd.SuggestionsMinimumDistance = 1 // half of the commands have two letters
	}
	e := zcerr.New(zcerr.Invalid, "there is no command %q", args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return e.WithHint("did you mean %s? All commands: zcctl --help", strings.Join(near, " or "))
	}
	return e.WithHint("all commands: zcctl --help")
}

// within is ctx with the time a command may take: --timeout, else def; 0 is for ever.
func (a *app) within(ctx context.Context, def time.Duration) (context.Context, context.CancelFunc) {
	if a.timeout > 0 {
		def = a.timeout
	}
	if def == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, def)
}

// dial makes a client of the daemon that the flags name. The caller closes it.
func (a *app) dial(ctx context.Context) (*client.Client, error) {
	return client.Dial(ctx, client.Options{Socket: a.socket})
}

// ask is a command's way to the daemon: do gets a client and a context that ends after the quick time.
func (a *app) ask(cmd *cobra.Command, do func(context.Context, *client.Client) error) error {
	ctx, cancel := a.within(cmd.Context(), quick)
	defer cancel()
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return do(ctx, c)
}

// args holds a command to its arguments; names are those of the help, as in "NAME:TAG". more lets the last one repeat.
func args(more bool, names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, got []string) error {
		if len(got) < len(names) {
			return fmt.Errorf("%s is missing", names[len(got)])
		}
		if len(got) > len(names) && !more {
			if len(names) == 0 {
				return fmt.Errorf("it takes no arguments, got %q", got[0])
			}
			return fmt.Errorf("%q is one argument too many, after %s", got[len(names)], strings.Join(names, " "))
		}
		return nil
	}
}

// atMostOne is for commands with an optional argument.
func atMostOne(name string) cobra.PositionalArgs {
	return func(_ *cobra.Command, got []string) error {
		if len(got) > 1 {
			return fmt.Errorf("%q is one argument too many, after %s", got[1], name)
		}
		return nil
	}
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// completeRefs completes references from what is stored. Without a daemon there is nothing to complete.
func (a *app) completeRefs(n int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, got []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if n > 0 && len(got) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		c, err := a.dial(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		versions, err := c.List(ctx, "", false)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var refs []cobra.Completion
		for _, v := range versions {
			for _, tag := range v.Tags {
				refs = append(refs, v.Name+":"+tag)
			}
		}
		return refs, cobra.ShellCompDirectiveNoFileComp
	}
}
