package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// maxStreams is how many blobs are worth downloading from one host at once.
const maxStreams = 6

const (
	// resumes is how often a broken download goes on from where it was, without
	// a byte coming in between.
	resumes = 4
	// resumeAfter is the first pause before that; each next one is twice as long.
	resumeAfter = 500 * time.Millisecond
)

// Blob opens a layer of an image. A connection that breaks is taken up again
// where it was. The stream ends with an error when it is not exactly as long as
// announced; its digest is the reader's to verify. The caller closes it.
func (c *Client) Blob(ctx context.Context, img *Image, d Descriptor) (io.ReadCloser, error) {
	if err := checkDigest(d.Digest); err != nil {
		return nil, &Error{Kind: Server, Ref: img.Ref.String(), Message: "layer: " + err.Error()}
	}
	b := &blob{ctx: ctx, client: c, img: img, d: d}
	if err := b.open(); err != nil {
		return nil, explain(ctx, img.Ref.String(), img.endpoint.host(), err)
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
	broken int
}

// open asks for what is missing: at the place where the manifest was, then at
// all others.
func (b *blob) open() error {
	places, err := b.client.endpoints(b.img.Ref)
	if err != nil {
		return err
	}
	var first error
	for _, e := range append([]endpoint{b.img.endpoint}, places...) {
		if b.body, err = b.openAt(e); err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
		if b.ctx.Err() != nil {
			break
		}
	}
	return first
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
				return 0, explain(b.ctx, b.img.Ref.String(), b.img.endpoint.host(), err)
			}
		}
		n, err := b.body.Read(p)
		b.offset += int64(n)
		if n > 0 {
			b.broken = 0
		}
		switch {
		case b.offset > b.d.SizeBytes:
			return n, b.wrongLength("more")
		case err == nil, errors.Is(err, io.EOF) && b.offset == b.d.SizeBytes:
			return n, err
		case b.ctx.Err() != nil:
			return n, context.Cause(b.ctx)
		case errors.Is(err, io.EOF):
			// A whole answer that is too short: asking again would not help.
			return n, b.wrongLength(strconv.FormatInt(b.offset, 10))
		}
		b.interrupt()
		if b.broken > resumes {
			return n, explain(b.ctx, b.img.Ref.String(), b.img.endpoint.host(), err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

func (b *blob) wrongLength(got string) error {
	return &Error{
		Kind: Mismatch, Ref: b.img.Ref.String(),
		Message: fmt.Sprintf("%s sent %s bytes of layer %s, which has %d", b.img.endpoint.host(), got, b.d.Digest, b.d.SizeBytes),
		Hint:    "the registry's copy is damaged",
	}
}

// interrupt drops a broken connection.
func (b *blob) interrupt() {
	b.body.Close()
	b.body = nil
	b.broken++
}

// again waits a little and asks for the rest.
func (b *blob) again() error {
	select {
	case <-time.After(resumeAfter << (b.broken - 1)):
	case <-b.ctx.Done():
		return context.Cause(b.ctx)
	}
	err := b.open()
	if err != nil && b.broken < resumes && b.ctx.Err() == nil {
		b.broken++
		return b.again()
	}
	return err
}

// Close implements io.Closer.
func (b *blob) Close() error {
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}
