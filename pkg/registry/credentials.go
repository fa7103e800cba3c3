package registry

import (
	"os"
	"path/filepath"

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
			break
		}
	}
	return creds, err
}

// readable says which files are read, in order. Without XDG_RUNTIME_DIR the
// libraries would look below /run/containers, which is root's alone once root
// has used podman: that must not end the search.
func (c *Client) readable(sys *types.SystemContext) []*types.SystemContext {
	if c.o.DockerConfig == "" || c.o.AuthFile != "" || sys.DockerAuthConfig != nil {
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
	if sys.AuthFilePath == "" {
		sys.DockerCompatAuthFilePath = c.o.DockerConfig
	}
	return &sys
}
