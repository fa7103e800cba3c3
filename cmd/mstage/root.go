package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// cli is what all commands share.
type cli struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	// lookupenv is os.LookupEnv.
	lookupenv func(string) (string, bool)
	// workerStderr is the standard error of worker processes; nil is this one's.
	workerStderr *os.File
	// rootFlag and debug are the global flags.
	rootFlag string
	debug    bool
}

// newRoot returns the whole command tree.
func newRoot(c *cli) *cobra.Command {
	root := &cobra.Command{
		Use:   "mstage",
		Short: "Build images from multi-stage Dockerfiles, without a daemon and without root",
		Long: `mstage builds images from multi-stage Dockerfiles, without a daemon and
without root. Stages that don't depend on each other are built in parallel,
and a stage that the target doesn't need is not built at all.`,
		Example: `  mstage build -t hello .
  mstage images
  mstage history hello`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRun: func(*cobra.Command, []string) {
			setLogging(c.stderr, c.debug)
		},
	}
	root.SetIn(c.stdin)
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	root.PersistentFlags().StringVar(&c.rootFlag, "root", "", "directory of the image store (default $MSTAGE_ROOT, or the user's data directory)")
	root.PersistentFlags().BoolVarP(&c.debug, "debug", "D", false, "show what libraries log")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{message: err.Error(), command: cmd.CommandPath()}
	})
	root.AddCommand(
		newBuildCommand(c),
		newPlanCommand(c),
		newRunCommand(c),
		newImportCommand(c),
		newPullCommand(c),
		newPushCommand(c),
		newLoginCommand(c),
		newLogoutCommand(c),
		newLoadCommand(c),
		newSaveCommand(c),
		newRmiCommand(c),
		newPruneCommand(c),
		newUnshareCommand(c),
		newDfCommand(c),
		newDoctorCommand(c),
		newImagesCommand(c),
		newTagCommand(c),
		newInspectCommand(c),
		newHistoryCommand(c),
		newVersionCommand(c),
		newManCommand(c),
	)
	registerCompletions(c, root)
	return root
}

// execute runs the command that args (without the program's name) ask for.
func execute(ctx context.Context, c *cli, args []string) error {
	root := newRoot(c) //nolint:contextcheck // cobra hands the context through cmd.Context
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd(args...)
	if _, rest, err := root.Find(args); err != nil && !completes(args) {
		return unknownCommand(root, rest, err)
	}
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

// completes reports whether a shell asks how the command line may go on. Cobra
// adds the command for it when it runs.
func completes(args []string) bool {
	return len(args) > 0 && (args[0] == cobra.ShellCompRequestCmd || args[0] == cobra.ShellCompNoDescRequestCmd)
}

// unknownCommand says which word is no command and what may be meant.
func unknownCommand(root *cobra.Command, args []string, err error) error {
	message, _, _ := strings.Cut(err.Error(), "\n")
	e := &usageError{message: message, command: root.Name()}
	for _, word := range args {
		if near := root.SuggestionsFor(word); len(near) > 0 && strings.Contains(message, fmt.Sprintf("%q", word)) {
			e.hint = fmt.Sprintf("did you mean %q?", strings.Join(near, `" or "`))
		}
	}
	return e
}

// arguments makes what check refuses a usage error.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &usageError{
				message: fmt.Sprintf("%s: %v", cmd.Name(), err),
				hint:    "usage: " + cmd.UseLine(),
				command: cmd.CommandPath(),
			}
		}
		return nil
	}
}
