package ttyprogress

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/engine/progress"
)

// interval is how often the picture is drawn: the header shows tenths of a
// second, and nobody reads faster.
const interval = 100 * time.Millisecond

// Options say how a Display looks.
type Options struct {
	// Title is what the header says is going on: "Building".
	Title string
	// Colour allows colours and other styles.
	Colour bool
}

// Display shows events on a terminal. Send begins it, Close leaves the last
// picture there and gives the cursor back, as does every signal that ends the
// process or stops it.
type Display struct {
	tty     *os.File
	screen  screen // of draw's goroutine
	signals chan os.Signal
	fatal   chan os.Signal
	stop    chan struct{} // closed by Close: draw the end
	abort   chan struct{} // closed before the process is killed: just restore
	stopped chan struct{} // closed when the goroutine is done with the terminal

	mu      sync.Mutex
	model   *Model // guarded by mu
	started bool   // guarded by mu
	closed  bool   // guarded by mu
}

var _ progress.Sink = (*Display)(nil)

// New returns a display on a terminal, which the caller keeps open until Close.
func New(tty *os.File, o Options) *Display {
	return &Display{
		tty: tty, screen: screen{colour: o.Colour}, model: NewModel(o.Title),
		signals: make(chan os.Signal, 4), fatal: make(chan os.Signal, 4),
		stop: make(chan struct{}), abort: make(chan struct{}), stopped: make(chan struct{}),
	}
}

// Send takes an event. It never waits for the terminal.
func (d *Display) Send(e progress.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.model.Add(e)
	if !d.started && !d.closed {
		d.started = true
		listen(d.signals, syscall.SIGTSTP, syscall.SIGCONT)
		listen(d.fatal, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
		go d.draw()
		go d.watch()
	}
}

// listen is signal.Notify but for signals that the process was told to ignore,
// as nohup does.
func listen(c chan os.Signal, signals ...os.Signal) {
	for _, s := range signals {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
}

// Close draws the last picture. Later events are not shown. It may be called
// again.
func (d *Display) Close() {
	d.mu.Lock()
	first, started := !d.closed, d.started
	d.closed = true
	d.mu.Unlock()
	if !started {
		return
	}
	if first {
		close(d.stop)
	}
	<-d.stopped
}

// draw owns the terminal until the end.
func (d *Display) draw() {
	defer close(d.stopped)
	defer signal.Stop(d.signals)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			d.frame()
		case s := <-d.signals:
			if s == syscall.SIGTSTP {
				d.suspend()
			}
			d.write(d.screen.leave(nil)) // what was drawn before a stop is the shell's now
		case <-d.abort:
			d.write(d.screen.leave(nil))
			return
		case <-d.stop:
			d.last()
			return
		}
	}
}

// frame draws the picture of this moment, unless the terminal is somebody
// else's while this process is in the background.
func (d *Display) frame() {
	if !d.foreground() {
		d.screen.leave(nil)
		return
	}
	size := d.size()
	d.mu.Lock()
	lines := d.model.Frame(size, time.Now())
	d.mu.Unlock()
	d.write(d.screen.paint(nil, lines, size))
}

// last draws the picture that stays.
func (d *Display) last() {
	size := d.size()
	d.mu.Lock()
	lines, warnings := d.model.Final(size.Columns, time.Now()), d.model.Warnings()
	d.mu.Unlock()
	b := d.screen.paint(nil, lines, size)
	for _, line := range warnings {
		b = append(d.screen.text(b, line), '\n')
	}
	d.write(d.screen.leave(b))
}

// write writes to the terminal. One that is gone takes nothing, which is no
// reason to end a build.
func (d *Display) write(b []byte) { _, _ = d.tty.Write(b) }

// foreground reports whether the terminal is for this process to write to. One
// that controls no processes is.
func (d *Display) foreground() bool {
	group, err := unix.IoctlGetInt(int(d.tty.Fd()), unix.TIOCGPGRP)
	return err != nil || group == unix.Getpgrp()
}

// size is asked for before every picture, which makes SIGWINCH superfluous.
func (d *Display) size() Size {
	ws, err := unix.IoctlGetWinsize(int(d.tty.Fd()), unix.TIOCGWINSZ)
	if err != nil || ws.Col == 0 || ws.Row == 0 {
		return Size{Columns: 80, Rows: 24}
	}
	return Size{Columns: int(ws.Col), Rows: int(ws.Row)}
}

// suspend stops the process as if nobody had listened, and returns when it goes
// on.
func (d *Display) suspend() {
	d.write(d.screen.leave(nil))
	if err := stopProcess(); err != nil {
		return
	}
	select {
	case <-d.signals: // SIGCONT
	case <-time.After(stopWait):
	case <-d.abort:
	}
}

// restoreWait is how long a terminal that takes no bytes delays the end.
const restoreWait = 200 * time.Millisecond

// watch kills the process by the signals that would have killed it, after the
// cursor was restored: the second SIGINT or SIGTERM, as the first one cancels the
// build, and others at once.
func (d *Display) watch() {
	defer signal.Stop(d.fatal)
	canceled := false
	for {
		select {
		case <-d.stopped:
			return
		case s := <-d.fatal:
			if (s == syscall.SIGINT || s == syscall.SIGTERM) && !canceled {
				canceled = true
				continue
			}
			close(d.abort)
			select {
			case <-d.stopped:
			case <-time.After(restoreWait):
			}
			signal.Reset(s)
			if number, ok := s.(syscall.Signal); ok {
				_ = unix.Kill(unix.Getpid(), number)
			}
			return
		}
	}
}
