package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"go.podman.io/image/v5/pkg/tlsclientconfig"
)

// maxSmallBytes bounds every answer that is not a blob: manifests, tokens, error
// texts. Registries refuse manifests over 4 MiB.
const maxSmallBytes = 4 << 20

// errStalled is a registry that sends nothing for Options.Stall.
var errStalled = errors.New("no data for too long")

// errTooLarge is an answer that is no blob and over the limit.
var errTooLarge = fmt.Errorf("an answer of more than %d bytes", maxSmallBytes)

// plainHTTPError is a request that would go out without TLS.
type plainHTTPError struct{ host string }

func (e *plainHTTPError) Error() string { return "plain HTTP to " + e.host + " is not allowed" }

// guard is the transport under everything: it chooses certificates by host,
// keeps requests off plain HTTP unless that is allowed, bounds small answers and
// ends silent ones.
type guard struct {
	client *Client
	// insecure allows plain HTTP, and certificates nobody vouches for, for host.
	host     string
	insecure bool
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	host := r.URL.Host
	insecure := g.insecure && host == g.host
	// Who is elsewhere must not send us to what listens on this host.
	own := loopback(host) && loopback(g.host)
	if r.URL.Scheme != "https" && !insecure && !own {
		closeBody(r)
		return nil, &plainHTTPError{host: host}
	}
	rt, err := g.client.transport(host, insecure)
	if err != nil {
		closeBody(r)
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	watch := newWatch(g.client.o.Stall, func() { cancel(errStalled) })
	sent := r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		sent.Body = &sentBody{ReadCloser: r.Body, watch: watch}
	}
	resp, err := rt.RoundTrip(sent)
	if err != nil {
		watch.stop()
		if errors.Is(context.Cause(ctx), errStalled) {
			err = errStalled
		}
		cancel(nil)
		return nil, err
	}
	watch.stop()
	resp.Body = &watchedBody{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, watch: watch}
	if !isBlob(r, resp.StatusCode) {
		resp.Body = &smallBody{ReadCloser: resp.Body, left: maxSmallBytes}
	}
	return resp, nil
}

// closeBody does what a RoundTripper has to do when it sends nothing.
func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

// isBlob reports whether an answer is a blob, perhaps from where a registry sent
// us for it.
func isBlob(r *http.Request, status int) bool {
	for r.Response != nil && r.Response.Request != nil {
		r = r.Response.Request
	}
	return r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/v2/") && strings.Contains(r.URL.Path, "/blobs/sha256:") &&
		(status == http.StatusOK || status == http.StatusPartialContent)
}

// loopback reports whether a host is this one, which needs no TLS. Source:
// docker's default for insecure registries, 127.0.0.0/8.
func loopback(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	ip := net.ParseIP(strings.Trim(name, "[]"))
	return name == "localhost" || ip != nil && ip.IsLoopback()
}

// transport returns the connections to a host.
func (c *Client) transport(host string, insecure bool) (*http.Transport, error) {
	key := fmt.Sprint(insecure, " ", host)
	c.mu.Lock()
	t, ok := c.hosts[key]
	c.mu.Unlock()
	if ok {
		return t, nil
	}
	conf, err := c.tlsConfig(host)
	if err != nil {
		return nil, &Error{Kind: Config, Ref: host, Message: "certificates: " + err.Error(), Err: err}
	}
	conf.InsecureSkipVerify = insecure
	made := http.DefaultTransport.(*http.Transport).Clone()
	made.TLSClientConfig = conf
	made.DialContext = (&net.Dialer{Timeout: c.o.Stall, KeepAlive: 30 * time.Second}).DialContext
	made.MaxIdleConnsPerHost = maxStreams
	// Blobs are compressed already, and their length has to stay known.
	made.DisableCompression = true
	c.mu.Lock()
	defer c.mu.Unlock()
	if t, ok := c.hosts[key]; ok {
		return t, nil // somebody was faster
	}
	c.hosts[key] = made
	return made, nil
}

// tlsConfig returns the certificates for a host.
func (c *Client) tlsConfig(host string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.o.CABundle != "" {
		pem, err := os.ReadFile(c.o.CABundle)
		if err != nil {
			return nil, err
		}
		if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
			return nil, err
		}
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", c.o.CABundle)
		}
	}
	if c.o.CertDir != "" {
		return conf, tlsclientconfig.SetupCertificates(c.o.CertDir, conf)
	}
	for _, dir := range c.o.CertDirs {
		dir = filepath.Join(dir, host)
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		return conf, tlsclientconfig.SetupCertificates(dir, conf)
	}
	return conf, nil
}

// defaultCertDirs are where containers-certs.d(5) and docker look.
func defaultCertDirs() []string {
	dirs := []string{"/etc/containers/certs.d", "/etc/docker/certs.d"}
	if config, err := os.UserConfigDir(); err == nil {
		dirs = append([]string{filepath.Join(config, "containers", "certs.d")}, dirs...)
	}
	return dirs
}

// retrying repeats requests that a busy server or a broken connection ended.
func retrying(rt http.RoundTripper) http.RoundTripper {
	return transport.NewRetry(rt, transport.WithRetryStatusCodes(
		http.StatusRequestTimeout, http.StatusTooManyRequests,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
	))
}

// watch calls its function when reset comes too late.
type watch struct {
	after time.Duration
	timer *time.Timer
}

func newWatch(after time.Duration, late func()) *watch {
	return &watch{after: after, timer: time.AfterFunc(after, late)}
}

func (w *watch) reset() { w.timer.Reset(w.after) }
func (w *watch) stop()  { w.timer.Stop() }

// sentBody is a body on its way to the registry: it is not silent that long.
type sentBody struct {
	io.ReadCloser
	watch *watch
}

func (b *sentBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.watch.reset()
	return n, err
}

// watchedBody ends a body that is silent for too long. Time in which nobody
// reads does not count.
type watchedBody struct {
	io.ReadCloser
	ctx    context.Context //nolint:containedctx // of this one request
	cancel context.CancelCauseFunc
	watch  *watch
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.reset()
	n, err := b.ReadCloser.Read(p)
	b.watch.stop()
	if err != nil && !errors.Is(err, io.EOF) && errors.Is(context.Cause(b.ctx), errStalled) {
		err = errStalled
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.watch.stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// smallBody refuses an answer over the limit.
type smallBody struct {
	io.ReadCloser
	left int64
}

func (b *smallBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}
