package main

import (
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mstage/mstage"
	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/pkg/registry"
)

// registryFlags are the flags of every command that may reach a registry.
type registryFlags struct {
	authFile  string
	certDir   string
	creds     string
	tlsVerify bool
	caBundle  string
}

// register declares the flags, named as podman's and buildah's.
func (f *registryFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.authFile, "authfile", "", "`FILE` with credentials (default $REGISTRY_AUTH_FILE, or containers' and docker's usual files)")
	fs.StringVar(&f.certDir, "cert-dir", "", "`DIR` with *.crt, *.cert and *.key for the registry")
	fs.BoolVar(&f.tlsVerify, "tls-verify", true, "require HTTPS and a certificate that can be trusted")
}

// registerPull declares the flags of commands that read from registries.
func (f *registryFlags) registerPull(cmd *cobra.Command) {
	f.register(cmd)
	cmd.Flags().StringVar(&f.creds, "creds", "", "`USER:PASSWORD` for the registry")
}

// registerCA declares --ca-bundle for commands without RUNs.
func (f *registryFlags) registerCA(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.caBundle, "ca-bundle", "", "`FILE` of certificates to trust as well")
}

// registryOptions says how registries are reached.
func (c *cli) registryOptions(f *registryFlags) (registry.Options, error) {
	o := registry.Options{
		AuthFile: f.authFile, CABundle: f.caBundle, Insecure: !f.tlsVerify,
		RegistriesConf: c.getenv("CONTAINERS_REGISTRIES_CONF"), UserAgent: "mstage/" + version,
	}
	if o.AuthFile == "" {
		o.AuthFile = c.getenv("REGISTRY_AUTH_FILE")
	}
	if f.certDir != "" {
		if st, err := os.Stat(f.certDir); err != nil || !st.IsDir() {
			return o, usagef("--cert-dir %s: not a directory", f.certDir)
		}
		o.CertDir = f.certDir
	}
	if f.creds != "" {
		user, password, ok := strings.Cut(f.creds, ":")
		if !ok || user == "" {
			return o, usagef("--creds: USER:PASSWORD")
		}
		o.Credentials = &registry.Credentials{User: user, Password: password}
	}
	// containers' auth.json is below XDG_RUNTIME_DIR; without one docker's file
	// is where a user may write.
	o.DockerConfig = c.dockerConfig()
	o.NoRuntimeDir = o.DockerConfig != "" && c.getenv("XDG_RUNTIME_DIR") == "" && os.Geteuid() != 0
	return o, nil
}

// pullPolicies are the values of --pull, with docker's spellings of a boolean.
var pullPolicies = map[string]mstage.PullPolicy{
	"": mstage.PullMissing, "missing": mstage.PullMissing, "false": mstage.PullMissing,
	"always": mstage.PullAlways, "true": mstage.PullAlways, "never": mstage.PullNever,
}

// registryEngine opens an engine that reaches registries as the flags say.
func (c *cli) registryEngine(f *registryFlags, pull string) (*engine.Engine, error) {
	policy, ok := pullPolicies[pull]
	if !ok {
		return nil, usagef("--pull %s: always, missing or never", pull)
	}
	root, err := c.storeRoot()
	if err != nil {
		return nil, err
	}
	o, err := c.registryOptions(f)
	if err != nil {
		return nil, err
	}
	return mstage.New(mstage.Options{Root: root, Version: version, Registry: o, Pull: policy, Stderr: c.workerStderr})
}
