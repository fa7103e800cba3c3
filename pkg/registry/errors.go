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
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Kind says what went wrong, for those who act on it.
type Kind int

// The kinds.
const (
	// Network is a connection that was refused, reset or cut short.
	Network Kind = iota
	// NotFound is a name, tag or digest that the registry does not have.
	NotFound
	// Auth is a refusal for want of credentials, or with those given.
	Auth
	// Blocked is a registry that registries.conf forbids.
	Blocked
	// TLS is a certificate that can't be trusted, or no TLS where it is needed.
	TLS
	// DNS is a host name that nobody knows.
	DNS
	// Timeout is silence.
	Timeout
	// RateLimited is a registry that wants to be asked less often.
	RateLimited
	// Server is an answer that makes no sense, or a 5xx.
	Server
	// Mismatch is content that is not what its digest says, or over a limit.
	Mismatch
	// Config is a configuration file that can't be used.
	Config
)

// Error is why a registry could not be used. Hint is shown apart.
type Error struct {
	Kind Kind
	// Ref is what was asked for.
	Ref     string
	Message string
	Hint    string
	Err     error
}

func (e *Error) Error() string { return e.Ref + ": " + e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// is reports whether err is an *Error of that kind.
func is(err error, k Kind) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Kind == k
}

// IsNotFound reports whether the registry answered that it has no such thing.
func IsNotFound(err error) bool { return is(err, NotFound) }

// explain turns what a request came to into an *Error. host is who was asked.
// The end of ctx stays its cause.
func explain(ctx context.Context, ref, host string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, known := errors.AsType[*Error](err); known {
		return err
	}
	e := &Error{Ref: ref, Err: err}
	if answer, ok := errors.AsType[*transport.Error](err); ok {
		e.answered(host, answer)
		return e
	}
	e.failed(host, err)
	return e
}

// answered explains an answer of the registry.
func (e *Error) answered(host string, answer *transport.Error) {
	said := said(answer)
	switch code := answer.StatusCode; {
	case code == http.StatusUnauthorized:
		e.Kind, e.Message = Auth, host+" wants other credentials, or there is no such repository (401"+said+")"
		e.Hint = "mstage login " + host
	case code == http.StatusForbidden:
		e.Kind, e.Message = Auth, host+" refuses access with these credentials (403"+said+")"
		e.Hint = "mstage login " + host + " as a user who may; check the repository's name"
	case code == http.StatusNotFound:
		e.Kind, e.Message = NotFound, host+" has no such image (404"+said+")"
	case code == http.StatusTooManyRequests:
		e.Kind, e.Message = RateLimited, host+" limits the number of requests (429"+said+")"
		e.Hint = "mstage login " + host + " may raise the limit; a mirror in registries.conf avoids it"
	default:
		e.Kind, e.Message = Server, fmt.Sprintf("%s answered %d %s%s", host, code, http.StatusText(code), said)
	}
}

// maxSaidBytes keeps what a registry says on a line.
const maxSaidBytes = 200

// said is what the registry added, cut to a line.
func said(answer *transport.Error) string {
	if len(answer.Errors) == 0 {
		return ""
	}
	text := string(answer.Errors[0].Code)
	if m := answer.Errors[0].Message; m != "" {
		text += ": " + m
	}
	return fmt.Sprintf(", %.*s", maxSaidBytes, text)
}

// failed explains a request without an answer.
func (e *Error) failed(host string, err error) {
	var (
		dns     *net.DNSError
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		name    x509.HostnameError
		verify  *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		plain   *plainHTTPError
		netErr  net.Error
	)
	switch {
	case errors.As(err, &plain):
		e.Kind, e.Message = TLS, host+" does not speak TLS"
		e.Hint = insecureHint(host)
	case errors.As(err, &dns):
		e.Kind, e.Message = DNS, "no address for "+dns.Name+": "+dns.Err
		e.Hint = "check the name and this host's resolver; an image that is in the store needs no registry"
	case errors.As(err, &unknown):
		e.Kind, e.Message = TLS, host+"'s certificate is signed by an unknown authority"
		e.Hint = "put its CA into certs.d/" + host + "/ca.crt below ~/.config/containers or /etc/containers"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		e.Kind, e.Message = TLS, host+"'s certificate is expired or not valid yet: "+invalid.Detail
		e.Hint = "check this host's clock, or renew the certificate"
	case errors.As(err, &name), errors.As(err, &invalid), errors.As(err, &verify):
		e.Kind, e.Message = TLS, host+": "+err.Error()
	case errors.As(err, &record):
		e.Kind, e.Message = TLS, host+" does not speak TLS"
		e.Hint = insecureHint(host)
	case errors.Is(err, errStalled), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		e.Kind, e.Message = Timeout, host+" did not answer in time"
		e.Hint = "check the network and HTTPS_PROXY; an image that is in the store needs no registry"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Kind, e.Message = Network, host+" refuses connections"
		e.Hint = "is the registry running, and the port right?"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		e.Kind, e.Message = Network, host+" ended the connection in the middle of an answer"
	default:
		e.Kind, e.Message = Network, host+": "+err.Error()
	}
}

func insecureHint(host string) string {
	return "for plain HTTP say --tls-verify=false, or in registries.conf: [[registry]] location=\"" + host + "\" insecure=true"
}
