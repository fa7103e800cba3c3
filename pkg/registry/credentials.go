package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
	"github.com/google/go-containerregistry/pkg/authn"
	"go.podman.io/image/v5/pkg/docker/config"
	"go.podman.io/image/v5/types"
)

// authenticator returns the credentials for an endpoint; nobody's when there are
// none.
func (c *Client) authenticator(e endpoint) (authn.Authenticator, error) {
	sys := *c.sys
	if e.mirror { // those given are the registry's own
		sys.DockerAuthConfig = nil
	}
	creds, err := c.credentials(&sys, e.ref.Name())
	if err != nil {
		return nil, &Error{
			Kind: Auth, Ref: e.ref.String(), Message: "read credentials: " + err.Error(), Err: err,
			Hint: "check docker's config.json and containers' auth.json, and the credential helper that they name",
		}
	}
	if creds == (types.DockerAuthConfig{}) {
		return authn.Anonymous, nil
	}
	return authn.FromConfig(authn.AuthConfig{
		Username: creds.Username, Password: creds.Password, IdentityToken: creds.IdentityToken,
	}), nil
}

// credentials finds the credentials for a repository or registry, the zero value
// when there are none.
func (c *Client) credentials(sys *types.SystemContext, key string) (creds types.DockerAuthConfig, err error) {
	for _, sys := range c.readable(sys) {
		creds, err = config.GetCredentials(sys, key)
		if err != nil || creds != (types.DockerAuthConfig{}) {
			return creds, err
		}
	}
	if c.o.AuthFile != "" || sys.DockerAuthConfig != nil {
		return creds, nil
	}
	host, _, _ := strings.Cut(key, "/")
	return c.fromStore(host)
}

// hubKey is what docker calls its own registry in a credential store.
const hubKey = "https://index.docker.io/v1/"

// fromStore asks the credential helper that docker's config names for all
// registries, which containers' libraries leave out. Source: docker login
// reference, "Credential stores".
func (c *Client) fromStore(host string) (creds types.DockerAuthConfig, err error) {
	b, err := os.ReadFile(c.o.DockerConfig)
	if c.o.DockerConfig == "" || errors.Is(err, fs.ErrNotExist) {
		return creds, nil
	}
	if err != nil {
		return creds, err
	}
	var conf struct {
		CredsStore string `json:"credsStore"`
	}
	if err := json.Unmarshal(b, &conf); err != nil {
		return creds, fmt.Errorf("%s: %w", c.o.DockerConfig, err)
	}
	if conf.CredsStore == "" {
		return creds, nil
	}
	if host == "docker.io" {
		host = hubKey
	}
	helper := "docker-credential-" + conf.CredsStore
	got, err := client.Get(client.NewShellProgramFunc(helper), host)
	switch {
	case credentials.IsErrCredentialsNotFound(err):
		return creds, nil
	case err != nil:
		return creds, fmt.Errorf("%s: %w", helper, err)
	case got.Username == "<token>":
		creds.IdentityToken = got.Secret
	default:
		creds.Username, creds.Password = got.Username, got.Secret
	}
	return creds, nil
}

// readable says which files are read, in order. Without XDG_RUNTIME_DIR the
// libraries would look below /run/containers, which is root's alone once root
// has used podman: that must not end the search.
func (c *Client) readable(sys *types.SystemContext) []*types.SystemContext {
	if !c.o.NoRuntimeDir || c.o.AuthFile != "" || sys.DockerAuthConfig != nil {
		return []*types.SystemContext{sys}
	}
	var list []*types.SystemContext
	if dir, err := os.UserConfigDir(); err == nil {
		own := *sys
		own.AuthFilePath = filepath.Join(dir, "containers", "auth.json")
		list = append(list, &own)
	}
	own := *sys
	own.DockerCompatAuthFilePath = c.o.DockerConfig
	return append(list, &own)
}

// LoggedIn returns the user who is logged in to a registry, "" for nobody.
func (c *Client) LoggedIn(host string) (user string, err error) {
	creds, err := c.credentials(c.sys, host)
	if err != nil {
		err = &Error{Kind: Config, Ref: host, Message: "read credentials: " + err.Error(), Err: err}
	}
	return creds.Username, err
}

// writable says which file is written.
func (c *Client) writable() *types.SystemContext {
	sys := *c.sys
	if sys.AuthFilePath == "" && c.o.NoRuntimeDir {
		sys.DockerCompatAuthFilePath = c.o.DockerConfig
	}
	return &sys
}
