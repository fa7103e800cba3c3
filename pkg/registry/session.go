package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// session is an authenticated way into one repository.
type session struct {
	repo name.Repository
	// turn holds one token: who has it may connect, and look at http.
	turn chan struct{}
	http *http.Client // nil until connected
}

// session returns the way into an endpoint's repository. Only one of several
// callers connects; after a failure the next one tries again.
func (c *Client) session(ctx context.Context, e endpoint) (*session, error) {
	repo, err := repository(e)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	s, ok := c.repos[repo.Name()]
	if !ok {
		s = &session{repo: repo, turn: make(chan struct{}, 1)}
		c.repos[repo.Name()] = s
	}
	c.mu.Unlock()
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if s.http != nil {
		return s, nil
	}
	auth, err := c.authenticator(e)
	if err != nil {
		return nil, err
	}
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth, c.roundTripper(e), []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	s.http = &http.Client{Transport: rt}
	return s, nil
}

// repository is an endpoint's repository as go-containerregistry knows it.
func repository(e endpoint) (name.Repository, error) {
	var options []name.Option
	if e.insecure {
		options = append(options, name.Insecure)
	}
	return name.NewRepository(e.ref.Name(), options...)
}

// roundTripper is what requests to an endpoint go through, without credentials.
func (c *Client) roundTripper(e endpoint) http.RoundTripper {
	agent := c.o.UserAgent
	if agent == "" {
		agent = "mstage"
	}
	host := e.host()
	if repo, err := repository(e); err == nil {
		host = repo.RegistryStr()
	}
	return transport.NewUserAgent(retrying(&guard{client: c, host: host, insecure: e.insecure}), agent)
}

// get asks for a path below the repository, over plain HTTP when that is what
// the registry was found to speak. The caller closes the body. Every
// answer but those wanted is a *transport.Error.
func (s *session) get(ctx context.Context, path string, header http.Header, want ...int) (*http.Response, error) {
	url := fmt.Sprintf("https://%s/v2/%s/%s", s.repo.RegistryStr(), s.repo.RepositoryStr(), path)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header = header
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, want...); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// read reads a small answer to its end.
func read(resp *http.Response) ([]byte, error) {
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}
