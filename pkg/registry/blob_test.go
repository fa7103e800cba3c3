package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

const content = "0123456789abcdefghij"

// opened puts an image of one layer, content, and resolves it. Requests for the
// layer are answered by serve.
func opened(t *testing.T, o Options, serve http.HandlerFunc) (*fake, *Client, *Image, Descriptor) {
	t.Helper()
	f := newFake(t, false)
	f.put(t, "x", "latest", content)
	d := f.putBlob("x", "", content)
	if serve != nil {
		f.handle(blobPath("x", d.Digest), serve)
	}
	c := newClient(o)
	img, err := c.Resolve(t.Context(), parse(t, f.host()+"/x"), "linux/amd64")
	if err != nil {
		t.Fatal(err)
	}
	return f, c, img, d
}

func readBlob(t *testing.T, c *Client, img *Image, d Descriptor) (string, error) {
	t.Helper()
	r, err := c.Blob(t.Context(), img, d)
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return string(b), err
}

// cut answers with the bytes from..to of content, announced as those to the end,
// and breaks the connection when that is not all.
func cut(w http.ResponseWriter, from, to int) {
	w.Header().Set("Content-Length", strconv.Itoa(len(content)-from))
	if from > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = io.WriteString(w, content[from:to])
	if to < len(content) {
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

// from is where a Range begins, 0 without one.
func from(t *testing.T, r *http.Request) int {
	v := r.Header.Get("Range")
	if v == "" {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(v, "bytes="), "-"))
	if err != nil {
		t.Errorf("range %q: %v", v, err)
	}
	return n
}

func TestABrokenDownloadGoesOn(t *testing.T) {
	for name, serve := range map[string]func(n int, w http.ResponseWriter, r *http.Request){
		"in one piece": func(_ int, w http.ResponseWriter, _ *http.Request) { cut(w, 0, len(content)) },
		"cut once": func(n int, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				cut(w, 0, 7)
			}
			cut(w, from(t, r), len(content))
		},
		"cut before the first byte": func(n int, w http.ResponseWriter, r *http.Request) {
			if n < 3 {
				cut(w, from(t, r), from(t, r))
			}
			cut(w, from(t, r), len(content))
		},
		"no ranges there: all of it again": func(n int, w http.ResponseWriter, _ *http.Request) {
			if n == 1 {
				cut(w, 0, 7)
			}
			cut(w, 0, len(content))
		},
		"503 in between": func(n int, w http.ResponseWriter, r *http.Request) {
			switch {
			case n == 1:
				cut(w, 0, 7)
			case n < 6:
				http.Error(w, "busy", http.StatusServiceUnavailable)
			default:
				cut(w, from(t, r), len(content))
			}
		},
		"all there, but the end of the stream is missing": func(_ int, w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush() // chunked
			_, _ = io.WriteString(w, content)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := 0
			_, c, img, d := opened(t, isolated(t), func(w http.ResponseWriter, r *http.Request) { n++; serve(n, w, r) })
			if got, err := readBlob(t, c, img, d); err != nil || got != content {
				t.Errorf("got %q, %v, want %q", got, err, content)
			}
		})
	}
}

func TestADownloadThatCantBeRightEnds(t *testing.T) {
	for name, c := range map[string]struct {
		serve func(n int, w http.ResponseWriter, r *http.Request)
		kind  Kind
		text  string
		// most is how many requests it may take.
		most int
	}{
		"too short":      {func(_ int, w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, content[:9]) }, Mismatch, "sent 9 bytes", 1},
		"too long":       {func(_ int, w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, content+"x") }, Mismatch, "sent more", 1},
		"endless":        {func(_ int, w http.ResponseWriter, r *http.Request) { endless(w, r) }, Mismatch, "sent more", 1},
		"gone":           {func(_ int, w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }, Mismatch, "not the blob sha256:", 1},
		"cut always":     {func(_ int, w http.ResponseWriter, r *http.Request) { cut(w, from(t, r), from(t, r)) }, Network, "ended the connection", 20},
		"a byte a time":  {func(_ int, w http.ResponseWriter, r *http.Request) { cut(w, from(t, r), from(t, r)+1) }, Network, "ended the connection", 6},
		"gone meanwhile": {func(n int, w http.ResponseWriter, r *http.Request) { first(n, w, func() { http.NotFound(w, r) }) }, Mismatch, "not the blob", 2},
		"elsewhere": {func(n int, w http.ResponseWriter, _ *http.Request) {
			first(n, w, func() {
				w.Header().Set("Content-Range", "bytes 3-19/20")
				w.WriteHeader(http.StatusPartialContent)
				_, _ = io.WriteString(w, content[3:])
			})
		}, Network, "asked for byte 7", 6},
		"no place told": {func(n int, w http.ResponseWriter, _ *http.Request) {
			first(n, w, func() { w.WriteHeader(http.StatusPartialContent) })
		}, Network, "asked for byte 7", 6},
		"a range nobody asked for": {func(_ int, w http.ResponseWriter, _ *http.Request) { cut(w, 5, len(content)) }, Network, "asked for byte 0", 1},
		"a redirect in a circle":   {func(_ int, w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, Network, "10 redirects", 11},
	} {
		t.Run(name, func(t *testing.T) {
			n := 0
			_, client, img, d := opened(t, isolated(t), func(w http.ResponseWriter, r *http.Request) { n++; c.serve(n, w, r) })
			_, err := readBlob(t, client, img, d)
			wantError(t, err, c.kind, c.text, img.Ref.Domain)
			if n > c.most {
				t.Errorf("asked %d times, want at most %d", n, c.most)
			}
		})
	}
}

// first cuts the first answer; the others are then's.
func first(n int, w http.ResponseWriter, then func()) {
	if n == 1 {
		cut(w, 0, 7)
	}
	then()
}

// endless sends until nobody reads any more.
func endless(w http.ResponseWriter, r *http.Request) {
	junk := []byte(strings.Repeat("x", 64<<10))
	for r.Context().Err() == nil {
		if _, err := w.Write(junk); err != nil {
			return
		}
	}
}

func TestADigestThatIsNoneNeverGetsIntoAPath(t *testing.T) {
	f, c, img, _ := opened(t, isolated(t), nil)
	for _, digest := range []string{"", "sha256:", "sha256:../../manifests/latest", "sha512:" + strings.Repeat("0", 128), "sha256:" + strings.Repeat("A", 64), "sha256:" + strings.Repeat("0", 63) + "/"} {
		before := len(f.requests)
		_, err := c.Blob(t.Context(), img, Descriptor{Digest: digest})
		wantError(t, err, Server, "not a sha256 digest")
		if len(f.requests) != before {
			t.Errorf("%q was asked for", digest)
		}
	}
}

func TestACancelEndsADownload(t *testing.T) {
	silent := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		_, _ = io.WriteString(w, content[:3])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
	_, c, img, d := opened(t, isolated(t), silent)
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	r, err := c.Blob(ctx, img, d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	cancel(cause)
	if _, err := r.Read(make([]byte, 3)); !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause", err)
	}
}

func TestSilenceEnds(t *testing.T) {
	quick := isolated(t)
	quick.Stall = 20 * time.Millisecond
	t.Run("before the answer", func(t *testing.T) {
		_, c, img, d := opened(t, quick, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		_, err := readBlob(t, c, img, d)
		wantError(t, err, Timeout, img.Ref.Domain, "hint: ")
	})
	t.Run("in the middle, and goes on", func(t *testing.T) {
		n := 0
		_, c, img, d := opened(t, quick, func(w http.ResponseWriter, r *http.Request) {
			if n++; n > 1 {
				cut(w, from(t, r), len(content))
				return
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			_, _ = io.WriteString(w, content[:3])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		})
		if got, err := readBlob(t, c, img, d); err != nil || got != content {
			t.Errorf("got %q, %v", got, err)
		}
	})
	t.Run("not while nobody reads", func(t *testing.T) {
		_, c, img, d := opened(t, quick, nil)
		r, err := c.Blob(t.Context(), img, d)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		<-time.After(3 * quick.Stall)
		if b, err := io.ReadAll(r); err != nil || string(b) != content {
			t.Errorf("got %q, %v", b, err)
		}
	})
}
