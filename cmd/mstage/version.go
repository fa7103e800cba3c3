package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the release build: -ldflags "-X main.version=1.2.3".
var version = "dev"

// versionInfo is what `version` prints.
type versionInfo struct {
	Version   string
	Commit    string // "" when built outside of a repository
	GoVersion string
	Os        string
	Arch      string
}

func newVersionCommand(c *cli) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the version of mstage",
		Example: `  mstage version
  mstage version --format json
  mstage version --format '{{.Version}}'`,
		Args: arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return printVersion(c, format)
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", `"json" or a Go template`)
	return cmd
}

func printVersion(c *cli, format string) error {
	v := currentVersion()
	switch format {
	case "":
		line := fmt.Sprintf("mstage version %s", v.Version)
		if v.Commit != "" {
			line += ", commit " + v.Commit
		}
		_, err := fmt.Fprintf(c.stdout, "%s, %s, %s/%s\n", line, v.GoVersion, v.Os, v.Arch)
		return err
	case "json":
		return json.NewEncoder(c.stdout).Encode(v)
	}
	f, err := parseFormat(format)
	if err != nil {
		return err
	}
	return writeLine(c.stdout, f.tmpl, v)
}

func currentVersion() versionInfo {
	v := versionInfo{Version: version, GoVersion: runtime.Version(), Os: runtime.GOOS, Arch: runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Commit = s.Value[:min(12, len(s.Value))]
		}
	}
	return v
}
