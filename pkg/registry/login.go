package registry

import (
	"context"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	docker "go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/docker/config"
)

// Credentials are a user and a password or token.
type Credentials struct{ User, Password string }

// Login asks a registry whether it takes the credentials, and keeps them. It
// returns where they are kept.
func (c *Client) Login(ctx context.Context, host string, creds Credentials) (kept string, err error) {
	if err := c.verify(ctx, host, creds); err != nil {
		err = explain(ctx, host, host, err)
		if is(err, Auth) {
			return "", &Error{Kind: Auth, Ref: host, Message: "the registry does not accept this user and password", Err: err}
		}
		return "", err
	}
	kept, err = config.SetCredentials(c.writable(), host, creds.User, creds.Password)
	if err != nil {
		return "", &Error{Kind: Config, Ref: host, Message: "keep the credentials: " + err.Error(), Err: err, Hint: "--authfile names a file that can be written"}
	}
	return kept, nil
}

// verify asks for the registry's root.
func (c *Client) verify(ctx context.Context, host string, creds Credentials) error {
	named, err := docker.ParseNormalizedNamed(host + "/login")
	if err != nil {
		return &Error{Kind: Config, Ref: host, Message: "not the name of a registry: " + err.Error()}
	}
	e, err := c.own(named)
	if err != nil {
		return err
	}
	repo, err := repository(e)
	if err != nil {
		return err
	}
	reg := repo.Registry
	auth := authn.FromConfig(authn.AuthConfig{Username: creds.User, Password: creds.Password})
	rt, err := transport.NewWithContext(ctx, reg, auth, c.roundTripper(e), nil)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+reg.RegistryStr()+"/v2/", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: rt}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return transport.CheckError(resp, http.StatusOK)
}

// Logout forgets the credentials for a registry. Having none is an error.
func (c *Client) Logout(host string) error {
	if err := config.RemoveAuthentication(c.writable(), host); err != nil {
		return &Error{Kind: Config, Ref: host, Message: fmt.Sprintf("forget the credentials: %v", err), Err: err}
	}
	return nil
}

// LogoutAll forgets the credentials for all registries.
func (c *Client) LogoutAll() error {
	if err := config.RemoveAllAuthentication(c.writable()); err != nil {
		return &Error{Kind: Config, Ref: "all registries", Message: fmt.Sprintf("forget the credentials: %v", err), Err: err}
	}
	return nil
}
