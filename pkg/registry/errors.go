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
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

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
	answer, answered := errors.AsType[*transport.Error](err)
	switch {
	// Loopback is tried without TLS too; what that came to matters less.
	case e.untrusted(host, err):
	case answered:
		e.answered(host, answer)
	default:
		e.failed(host, err)
	}
	return e
}

// answered explains an answer of the registry.
func (e *Error) answered(host string, answer *transport.Error) {
	said := said(answer)
	switch code := answer.StatusCode; code {
	case http.StatusUnauthorized:
		e.Kind, e.Message = Auth, host+" wants other credentials, or there is no such repository (401"+said+")"
		e.Hint = "mstage login " + host
	case http.StatusForbidden:
		e.Kind, e.Message = Auth, host+" refuses access with these credentials (403"+said+")"
		e.Hint = "mstage login " + host + " as a user who may; check the repository's name"
	case http.StatusNotFound:
		e.Kind, e.Message = NotFound, host+" has no such image (404"+said+")"
	case http.StatusTooManyRequests:
		e.Kind, e.Message = RateLimited, host+" limits the number of requests (429"+said+")"
		e.Hint = "mstage login " + host + " may raise the limit; a mirror in registries.conf avoids it"
	default:
		e.Kind, e.Message = Server, fmt.Sprintf("%s answered %d %s%s", host, code, http.StatusText(code), said)
	}
}

// maxSaid is how many characters of what a registry says are shown.
const maxSaid = 200

// oneLine makes text from outside fit for an error: without what moves a
// terminal's cursor, and not too long.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if utf8.RuneCountInString(s) <= maxSaid {
		return s
	}
	return fmt.Sprintf("%.*s…", maxSaid, s)
}

// said is what the registry added, cut to a line.
func said(answer *transport.Error) string {
	if len(answer.Errors) == 0 {
		return ""
	}
	text := string(answer.Errors[0].Code)
	if m := answer.Errors[0].Message; m != "" {
		text += ": " + m
	}
	return ", " + oneLine(text)
}

// untrusted explains a certificate that is not good enough; it reports whether
// err is about one.
func (e *Error) untrusted(host string, err error) bool {
	var (
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		name    x509.HostnameError
		verify  *tls.CertificateVerificationError
		alert   tls.AlertError
	)
	e.Kind = TLS
	switch {
	case errors.As(err, &unknown):
		e.Message = host + "'s certificate is signed by an unknown authority"
		e.Hint = "put its CA into certs.d/" + host + "/ca.crt below ~/.config/containers or /etc/containers, or name it by --cert-dir or --ca-bundle"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		e.Message = host + "'s certificate is expired or not valid yet: " + oneLine(invalid.Detail)
		e.Hint = "check this host's clock, or renew the certificate"
	case errors.As(err, &name):
		e.Message = host + "'s certificate is for another name: " + oneLine(name.Error())
		e.Hint = "use the name that the certificate has, or give the registry one for " + host
	case errors.As(err, &invalid), errors.As(err, &verify):
		e.Message = host + ": " + oneLine(err.Error())
	case errors.As(err, &alert):
		e.Message = host + " ended the TLS handshake: " + alert.Error()
		e.Hint = "a registry that asks for a client certificate finds it as client.cert and client.key in certs.d/" + host + " or --cert-dir"
	default:
		return false
	}
	return true
}

// failed explains a request without an answer.
func (e *Error) failed(host string, err error) {
	var (
		dns    *net.DNSError
		record tls.RecordHeaderError
		plain  *plainHTTPError
		netErr net.Error
	)
	switch {
	case errors.As(err, &dns):
		e.Kind, e.Message = DNS, "no address for "+dns.Name+": "+dns.Err
		e.Hint = "check the name and this host's resolver; an image that is in the store needs no registry"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Kind, e.Message = Network, host+" refuses connections"
		e.Hint = "is the registry running, and the port right?"
	case errors.Is(err, errStalled), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		e.Kind, e.Message = Timeout, host+" did not answer in time"
		e.Hint = "check the network and HTTPS_PROXY; an image that is in the store needs no registry"
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		e.Kind, e.Message = TLS, host+" does not speak TLS"
		e.Hint = insecureHint(host)
	case errors.As(err, &plain):
		e.Kind, e.Message = TLS, host+" wants "+oneLine(plain.host)+" to be asked without TLS"
		e.Hint = insecureHint(host)
	case errors.Is(err, errTooLarge):
		e.Kind, e.Message = Server, host+" sent "+errTooLarge.Error()
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		e.Kind, e.Message = Network, host+" ended the connection in the middle of an answer"
	default:
		e.Kind, e.Message = Network, host+": "+oneLine(err.Error())
	}
}

func insecureHint(host string) string {
	return "for plain HTTP say --tls-verify=false, or in registries.conf: [[registry]] location=\"" + host + "\" insecure=true"
}
