package dragonboat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/lni/dragonboat/v4/logger"
)

// Dragonboat logs through one factory a process, set once. These two are the only package variables here; in a
// process with several hosts the last opened one hears for all.
var (
	factory sync.Once
	sink    atomic.Pointer[logSink]
)

type logSink struct {
	log   *slog.Logger
	fatal func(error)
}

// routeLog sends Dragonboat's warnings and errors to log, the warnings as something for debugging: they tell every
// vote and every proposal without a leader, which the manager's own lines tell in fewer words.
func routeLog(log *slog.Logger, fatal func(error)) {
	sink.Store(&logSink{log, fatal})
	factory.Do(func() { logger.SetLoggerFactory(func(pkg string) logger.ILogger { return raftLog{pkg} }) })
}

// raftLog is a logger for one package of Dragonboat's.
type raftLog struct{ pkg string }

// SetLevel does nothing: the level is that of the slog handler.
func (raftLog) SetLevel(logger.LogLevel) {}

// Debugf is not passed on.
func (raftLog) Debugf(string, ...any) {}

// Infof is not passed on: Dragonboat tells every step of every election.
func (raftLog) Infof(string, ...any) {}

// Warningf passes a warning on for debugging. Formatting costs, and a group without a leader warns often.
func (l raftLog) Warningf(format string, args ...any) {
	if log := sink.Load().log; log.Enabled(context.Background(), slog.LevelDebug) {
		log.Debug(fmt.Sprintf(format, args...), "package", l.pkg)
	}
}

// Errorf passes an error on.
func (l raftLog) Errorf(format string, args ...any) {
	sink.Load().log.Error(fmt.Sprintf(format, args...), "package", l.pkg)
}

// Panicf is how Dragonboat stops when its store fails. Under Open it panics, which Open turns into an error; on a
// goroutine of Dragonboat's own nobody could catch that, so the owner of the process is told to end it.
func (l raftLog) Panicf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s := sink.Load()
	if s.fatal == nil || underOpen() {
		panic(errors.New(text))
	}
	s.fatal(damaged("the data directory", errors.New(text)))
	select {} // the process is ending; this goroutine must not go on
}

// underOpen reports whether Host.start is on the stack.
func underOpen() bool {
	pc := make([]uintptr, 64)
	frames := runtime.CallersFrames(pc[:runtime.Callers(2, pc)])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, "dragonboat.(*Host).start") || strings.HasSuffix(f.Function, "dragonboat.(*Host).stop") {
			return true
		}
		if !more {
			return false
		}
	}
}
