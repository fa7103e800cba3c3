package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// maxStreams is how many blobs are worth downloading from one host at once.
const maxStreams = 6

const (
	// resumes is how often a broken download goes on from where it was, without
	// goodBytes coming in between.
	resumes = 4
	// goodBytes is how much has to come in between for a break not to count.
	goodBytes = 1 << 20
	// resumeAfter is the first pause before that; each next one is twice as long.
	resumeAfter = 500 * time.Millisecond
)

// Blob opens a layer or the config of an image. A connection that breaks is taken up again
// where it was. The stream ends with an error when it is not exactly as long as
// announced; its digest is the reader's to verify. The caller closes it.
func (c *Client) Blob(ctx context.Context, img *Image, d Descriptor) (io.ReadCloser, error) {
	if err := checkDigest(d.Digest); err != nil {
		return nil, &Error{Kind: Server, Ref: img.Ref.String(), Message: "blob: " + err.Error()}
	}
	b := &blob{ctx: ctx, client: c, img: img, d: d}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

// blob is a download that goes on after an interruption.
type blob struct {
	ctx    context.Context //nolint:containedctx // of this one download
	client *Client
	img    *Image
	d      Descriptor
	body   io.ReadCloser // nil after an interruption
	offset int64
	// broken counts interruptions since good, an offset.
	broken int
	good   int64
}

// open asks for what is missing: at the place where the manifest was, then at
// all others. The error is an *Error.
func (b *blob) open() error {
	places, err := b.client.endpoints(b.img.Ref)
	if err != nil {
		return err
	}
	first := b.img.endpoint
	places = slices.DeleteFunc(places, func(e endpoint) bool { return e.ref.String() == first.ref.String() })
	var errs []error
	for _, e := range append([]endpoint{first}, places...) {
		if b.body, err = b.openAt(e); err == nil {
			return nil
		}
		errs = append(errs, b.explain(e, err))
		if b.ctx.Err() != nil {
			break
		}
	}
	return errs[0]
}

// explain is explain for a blob: one that is missing is not an image that is.
func (b *blob) explain(e endpoint, err error) error {
	err = explain(b.ctx, b.img.Ref.String(), e.host(), err)
	if IsNotFound(err) {
		return &Error{
			Kind: Mismatch, Ref: b.img.Ref.String(), Err: err,
			Message: e.host() + " has the manifest, but not the blob " + b.d.Digest,
			Hint:    "the registry's copy is damaged: push the image again",
		}
	}
	return err
}

func (b *blob) openAt(e endpoint) (io.ReadCloser, error) {
	s, err := b.client.session(b.ctx, e)
	if err != nil {
		return nil, err
	}
	header := http.Header{}
	if b.offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", b.offset))
	}
	resp, err := s.get(b.ctx, "blobs/"+b.d.Digest, header, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK && b.offset > 0 { // no ranges there
		_, err = io.CopyN(io.Discard, resp.Body, b.offset)
	}
	if resp.StatusCode == http.StatusPartialContent && !startsAt(resp, b.offset) {
		err = fmt.Errorf("asked for byte %d on, got %q", b.offset, resp.Header.Get("Content-Range"))
	}
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp.Body, nil
}

// startsAt reports whether a partial answer begins where it has to. Source: RFC
// 9110, 14.4.
func startsAt(resp *http.Response, offset int64) bool {
	var start int64
	_, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes "+strconv.FormatInt(offset, 10)+"-%d/", &start)
	return err == nil
}

// Read implements io.Reader.
func (b *blob) Read(p []byte) (int, error) {
	for {
		if b.body == nil {
			if err := b.again(); err != nil {
				return 0, err
			}
		}
		n, err := b.body.Read(p)
		b.offset += int64(n)
		switch {
		case b.offset > b.d.SizeBytes:
			return n, b.wrongLength("more")
		case err == nil:
			return n, nil
		case b.offset == b.d.SizeBytes: // how the answer ended does not matter then
			return n, io.EOF
		case b.ctx.Err() != nil:
			return n, context.Cause(b.ctx)
		case errors.Is(err, io.EOF):
			// A whole answer that is too short: asking again would not help.
			return n, b.wrongLength(strconv.FormatInt(b.offset, 10))
		}
		b.interrupt()
		if b.broken > resumes {
			return n, b.explain(b.img.endpoint, err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

func (b *blob) wrongLength(got string) error {
	return &Error{
		Kind: Mismatch, Ref: b.img.Ref.String(),
		Message: fmt.Sprintf("%s sent %s bytes of blob %s, which has %d", b.img.endpoint.host(), got, b.d.Digest, b.d.SizeBytes),
		Hint:    "the registry's copy is damaged",
	}
}

// interrupt drops a broken connection.
func (b *blob) interrupt() {
	b.body.Close()
	b.body = nil
	if b.offset-b.good >= goodBytes {
		b.good, b.broken = b.offset, 0
	}
	b.broken++
}

// again waits a little and asks for the rest.
func (b *blob) again() error {
	for {
		select {
		case <-time.After(b.client.resumeAfter << (b.broken - 1)):
		case <-b.ctx.Done():
			return context.Cause(b.ctx)
		}
		err := b.open()
		if err == nil || b.broken == resumes || b.ctx.Err() != nil || !passing(err) {
			return err
		}
		b.broken++
	}
}

// passing reports whether an error may be gone in a moment.
func passing(err error) bool {
	return is(err, Network) || is(err, Timeout) || is(err, Server) || is(err, RateLimited)
}

// Close implements io.Closer.
func (b *blob) Close() error {
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}
