package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/pkg/reference"
)

// maxCompletedBytes bounds a Dockerfile that is read for the names of its stages.
const maxCompletedBytes = 1 << 20

// registerCompletions says what a shell offers for arguments and flags. A
// command that is not there is passed over.
func registerCompletions(c *cli, root *cobra.Command) {
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "rmi", "inspect", "save":
			cmd.ValidArgsFunction = c.completeImages(0)
		case "history", "run", "tag", "push":
			cmd.ValidArgsFunction = c.completeImages(1)
		case "images":
			cmd.ValidArgsFunction = c.completeImages(1)
			_ = cmd.RegisterFlagCompletionFunc("filter", cobra.FixedCompletions(
				[]string{"before=", "dangling=true", "dangling=false", "label=", "reference=", "since="}, cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp))
		case "build", "plan":
			cmd.ValidArgsFunction = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)
			_ = cmd.RegisterFlagCompletionFunc("target", completeStages)
		}
		for name, values := range completedFlags[cmd.Name()] {
			_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)) // an absent flag needs none
		}
	}
}

// completedFlags are the values of flags that have few, by command and flag.
var completedFlags = map[string]map[string][]cobra.Completion{
	"build":  {"progress": {"auto", "plain", "json", "quiet"}, "network": {"default", "none", "host"}, "allow": {"network.host"}},
	"plan":   {"network": {"default", "none", "host"}, "allow": {"network.host"}, "format": {"text", "json", "dot"}},
	"run":    {"network": {"default", "none", "host"}},
	"save":   {"format": {"docker-archive", "oci-archive", "oci-dir"}},
	"doctor": {"format": {"text", "json"}},
}

// completeImages offers the names of local images for the first max arguments,
// for all when max is 0.
func (c *cli) completeImages(maxArgs int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if maxArgs > 0 && len(args) >= maxArgs {
			if cmd.Name() == "run" {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		images, err := c.openIndex()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		all, err := images.AllImages(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var words []cobra.Completion
		for _, img := range all {
			for _, name := range img.Names {
				if short := reference.Familiar(name); strings.HasPrefix(short, begun) && !slices.Contains(args, short) {
					words = append(words, short)
				}
			}
		}
		slices.Sort(words)
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeStages offers the names of the Dockerfile's stages.
func completeStages(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var words []cobra.Completion
	for _, name := range dockerfilesOf(cmd, args) {
		st, err := os.Stat(name)
		if err != nil || !st.Mode().IsRegular() || st.Size() > maxCompletedBytes {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		f, err := dockerfile.Parse(name, text)
		if err != nil {
			break
		}
		for _, s := range f.Stages {
			if s.Name != "" && strings.HasPrefix(s.Name, begun) {
				words = append(words, s.Name)
			}
		}
		break
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

// dockerfilesOf lists where the Dockerfile of a half written command line may be:
// what -f says, or the usual names in CONTEXT or here.
func dockerfilesOf(cmd *cobra.Command, args []string) []string {
	dir := "."
	if len(args) > 0 {
		dir = args[0]
	}
	if f := cmd.Flags().Lookup("file"); f != nil && f.Changed {
		return []string{f.Value.String(), filepath.Join(dir, f.Value.String())}
	}
	names := []string{}
	for _, name := range []string{"Dockerfile", "dockerfile", "Containerfile"} {
		names = append(names, filepath.Join(dir, name))
	}
	return names
}
