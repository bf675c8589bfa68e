package protoactor

import (
	"context"
	"log/slog"
)

// atLeast passes on records of a level and above: the library tells of every actor that comes and goes.
type atLeast struct {
	slog.Handler
	level slog.Level
}

// Enabled reports whether a record of this level is passed on.
func (h atLeast) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= h.level && h.Handler.Enabled(ctx, l)
}

// WithAttrs keeps the level.
func (h atLeast) WithAttrs(a []slog.Attr) slog.Handler {
	return atLeast{h.Handler.WithAttrs(a), h.level}
}

// WithGroup keeps the level.
func (h atLeast) WithGroup(name string) slog.Handler {
	return atLeast{h.Handler.WithGroup(name), h.level}
}
