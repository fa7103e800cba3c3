package main

import (
	"github.com/spf13/cobra"

	"github.com/mstage/mstage"
	"github.com/mstage/mstage/engine/stage"
)

// refusedFlags are flags of `docker build` and `buildah build` that fingers
// know and that can't be honoured yet, with what to do instead.
var refusedFlags = map[string]string{
	"build-context": "copy the directory into the context, or import it as an image and use COPY --from",
	"ssh":           "RUN --mount=type=secret gives a RUN a key",
	"cache-from":    "results are kept in the store; --root chooses it",
	"cache-to":      "results are kept in the store; --root chooses it",
	"attest":        "",
	"provenance":    "",
	"sbom":          "",
	"annotation":    "--label is kept in the image's config",
}

// registerRefused declares the flags that are only refused.
func registerRefused(cmd *cobra.Command) {
	fs := cmd.Flags()
	for name := range refusedFlags {
		fs.StringArray(name, nil, "not supported yet")
		fs.Lookup(name).Hidden = true
	}
	for _, name := range []string{"provenance", "sbom"} {
		fs.Lookup(name).NoOptDefVal = "true" // these need no value
	}
}

// checkRefused refuses a flag that can't be honoured.
func checkRefused(cmd *cobra.Command) error {
	for name, hint := range refusedFlags {
		if f := cmd.Flags().Lookup(name); f != nil && f.Changed {
			return &usageError{message: "--" + name + " is not supported yet", hint: hint, command: cmd.CommandPath()}
		}
	}
	return nil
}

// checkPlatform accepts --platform when it is what this host builds for.
func checkPlatform(value string) error {
	if value == "" {
		return nil
	}
	p, err := parsePlatform(value, "linux/amd64")
	if err != nil {
		return err
	}
	if host := stage.HostPlatform(); p.OS != host.OS || p.Arch != host.Arch {
		return &usageError{message: "--platform " + value + ": another platform than this host's is not supported yet", hint: "this host builds for " + mstage.Platform()}
	}
	return nil
}

// parsePlatform reads a --platform; the error is a usage error with an example.
func parsePlatform(value, example string) (stage.Platform, error) {
	p, err := stage.ParsePlatform(value)
	if err != nil {
		return p, &usageError{message: "--platform " + value + ": " + err.Error(), hint: "as " + example}
	}
	return p, nil
}
