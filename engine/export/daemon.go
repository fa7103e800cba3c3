package export

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/engine/image"
	"github.com/mstage/mstage/storage"
)

// Daemon is where a docker daemon, or podman's service, listens.
type Daemon struct {
	// Host is "unix:///path", "tcp://host:port" or "http(s)://host:port".
	Host string
	// CertDir has ca.pem, cert.pem and key.pem; "" is no TLS.
	CertDir string
	// SkipVerify accepts any certificate.
	SkipVerify bool
}

// DaemonError is a daemon that could not be reached or refused the image.
type DaemonError struct {
	Host    string
	Message string
	Hint    string
	// Unreachable is set when nobody answered.
	Unreachable bool
	Err         error
}

func (e *DaemonError) Error() string { return "daemon at " + e.Host + ": " + e.Message }

// Unwrap returns the cause.
func (e *DaemonError) Unwrap() error { return e.Err }

// maxLineBytes is the longest message of a daemon that is read.
const maxLineBytes = 1 << 20

// Load hands a sealed image to a daemon, as `docker load` does, and returns what
// the daemon says. layers are what Seal returned with Compress set. tell, which
// may be nil, hears how many bytes of how many went out.
func (d Daemon) Load(ctx context.Context, blobs storage.Blobs, img storage.Image, layers []image.SealedLayer, names []string, tell func(sent, total int64)) ([]string, error) {
	tags, err := parseNames(names)
	if err != nil {
		return nil, err
	}
	a := newArchive(true)
	if err := a.add(ctx, blobs, img, layers, tags); err != nil {
		return nil, err
	}
	if err := a.finish(); err != nil {
		return nil, err
	}
	client, base, err := d.client()
	if err != nil {
		return nil, d.failed(ctx, err)
	}
	defer client.CloseIdleConnections()
	body, out := io.Pipe()
	go func() { out.CloseWithError(a.writeTar(ctx, &toldWriter{w: out, total: a.sizeBytes(), tell: tell})) }()
	defer body.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/images/load?quiet=1", body)
	if err != nil {
		return nil, d.failed(ctx, err)
	}
	req.Header.Set("Content-Type", "application/x-tar")
	resp, err := client.Do(req)
	if err != nil {
		return nil, d.failed(ctx, err)
	}
	defer resp.Body.Close()
	return d.answer(ctx, resp)
}

// sizeBytes is what the members hold, without the tar around them.
func (a *archive) sizeBytes() int64 {
	var sum int64
	for _, m := range a.members {
		sum += m.sizeBytes
	}
	return sum
}

// Check reports, before anything is built, what would keep Load from the daemon:
// a way that is not supported, certificates that can't be read, a socket that is
// not there. Nobody is asked over a network.
func (d Daemon) Check() error {
	client, _, err := d.client()
	if err == nil {
		client.CloseIdleConnections()
		if path, isSocket := strings.CutPrefix(d.Host, "unix://"); isSocket {
			err = unix.Access(path, unix.W_OK)
		}
	}
	if err != nil {
		return d.failed(context.Background(), err)
	}
	return nil
}

// client returns an HTTP client for the daemon and the beginning of its URLs.
func (d Daemon) client() (*http.Client, string, error) {
	u, err := url.Parse(d.Host)
	if err != nil {
		return nil, "", err
	}
	t := &http.Transport{DisableCompression: true}
	switch u.Scheme {
	case "unix":
		path := u.Host + u.Path
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
		return &http.Client{Transport: t}, "http://daemon", nil
	case "tcp", "http", "https":
		t.Proxy = http.ProxyFromEnvironment
		if d.CertDir == "" && !d.SkipVerify && u.Scheme != "https" {
			return &http.Client{Transport: t}, "http://" + u.Host, nil
		}
		t.TLSClientConfig, err = d.tls()
		return &http.Client{Transport: t}, "https://" + u.Host, err
	default:
		return nil, "", fmt.Errorf("%s is not a way to a daemon that is supported; unix:// and tcp:// are", u.Scheme+"://")
	}
}

// tls reads the certificates, as docker names them.
func (d Daemon) tls() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: d.SkipVerify}
	if d.CertDir == "" {
		return conf, nil
	}
	pem, err := os.ReadFile(filepath.Join(d.CertDir, "ca.pem"))
	if err == nil {
		conf.RootCAs = x509.NewCertPool()
		conf.RootCAs.AppendCertsFromPEM(pem)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(d.CertDir, "cert.pem"), filepath.Join(d.CertDir, "key.pem"))
	if errors.Is(err, fs.ErrNotExist) {
		return conf, nil
	}
	conf.Certificates = []tls.Certificate{cert}
	return conf, err
}

// answer reads what the daemon says: lines of JSON, of which one may be the
// refusal although the status is 200. Source: Docker Engine API v1.41, ImageLoad.
func (d Daemon) answer(ctx context.Context, resp *http.Response) ([]string, error) {
	var said []string
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxLineBytes)
	for lines.Scan() {
		var m struct {
			Stream  string `json:"stream"`
			Error   string `json:"error"`
			Message string `json:"message"`
		}
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			m.Stream = lines.Text()
		}
		if refusal := m.Error + m.Message; refusal != "" || resp.StatusCode != http.StatusOK {
			return nil, &DaemonError{Host: d.Host, Message: "refuses the image: " + strings.TrimSpace(refusal+m.Stream)}
		}
		if text := strings.TrimSpace(m.Stream); text != "" {
			said = append(said, text)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, d.failed(ctx, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &DaemonError{Host: d.Host, Message: "answers " + resp.Status}
	}
	return said, nil
}

// failed explains a daemon that can't be talked to.
func (d Daemon) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	e := &DaemonError{Host: d.Host, Message: err.Error(), Err: err}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		e.Unreachable = true
	}
	switch {
	case errors.Is(err, syscall.EACCES):
		e.Message, e.Hint = "permission denied", "docker's socket is for root and the group docker; DOCKER_HOST names another daemon"
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		e.Message, e.Hint = "nobody listens there", "start the daemon, or name another with DOCKER_HOST"
	}
	return e
}

// toldWriter tells how much was written.
type toldWriter struct {
	w           io.Writer
	sent, total int64
	tell        func(sent, total int64)
}

func (t *toldWriter) Write(p []byte) (int, error) {
	n, err := t.w.Write(p)
	t.sent += int64(n)
	if t.tell != nil {
		t.tell(min(t.sent, t.total), t.total)
	}
	return n, err
}
