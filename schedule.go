package starling

import (
	"strconv"
	"strings"
	"time"
)

// A Provision sets how many instances of a function are wanted from an instant of each week on, until the next one of
// the function's schedule.
type Provision struct {
	At    string `cbor:"1,keyasint" json:"at" yaml:"at"`       // UTC: "08:00" each day, "Mon 08:00", or "Mon-Fri 08:00"
	Count int    `cbor:"2,keyasint" json:"count" yaml:"count"` // 0–ProvisionedMax
}

// The limits of what a function keeps ready.
const (
	ProvisionedMax = 1000 // instances
	ScheduleMax    = 32   // lines
)

var weekdays = map[string]int{"Sun": 0, "Mon": 1, "Tue": 2, "Wed": 3, "Thu": 4, "Fri": 5, "Sat": 6}

const (
	minutesOfDay  = 24 * 60
	minutesOfWeek = 7 * minutesOfDay
)

// parse returns the first and the last day, Sunday being 0, and the minute of the day.
func (p Provision) parse() (from, to, minute int, ok bool) {
	days, clock, two := strings.Cut(p.At, " ")
	from, to = 0, 6
	if !two {
		clock = days
	} else {
		first, last, span := strings.Cut(days, "-")
		if !span {
			last = first
		}
		a, okA := weekdays[first]
		b, okB := weekdays[last]
		if !okA || !okB {
			return 0, 0, 0, false
		}
		from, to = a, b
	}
	h, errH := strconv.ParseUint(clock[:min(2, len(clock))], 10, 8)
	if len(clock) != 5 || clock[2] != ':' || errH != nil || h > 23 {
		return 0, 0, 0, false
	}
	m, errM := strconv.ParseUint(clock[3:], 10, 8)
	return from, to, int(60*h + m), errM == nil && m <= 59
}

// since returns how many minutes before the given minute of the week the line last came into force.
func (p Provision) since(now int) int {
	from, to, minute, ok := p.parse()
	if !ok {
		return minutesOfWeek
	}
	least := minutesOfWeek
	for day := from; ; day = (day + 1) % 7 {
		least = min(least, ((now-day*minutesOfDay-minute)%minutesOfWeek+minutesOfWeek)%minutesOfWeek)
		if day == to {
			return least
		}
	}
}

// ProvisionedAt returns how many instances are wanted at least at the instant t: the count of the schedule's line that
// came into force last, or Provisioned when there is no schedule. Of lines of one instant the last one counts.
func (c *Config) ProvisionedAt(t time.Time) int {
	if len(c.Schedule) == 0 {
		return c.Provisioned
	}
	t = t.UTC()
	now := int(t.Weekday())*minutesOfDay + t.Hour()*60 + t.Minute()
	count, least := c.Provisioned, minutesOfWeek
	for _, p := range c.Schedule {
		if n := p.since(now); n <= least && n < minutesOfWeek {
			count, least = p.Count, n
		}
	}
	return count
}

// ProvisionedPeak returns the most instances that are wanted at any time.
func (c *Config) ProvisionedPeak() int {
	if len(c.Schedule) == 0 {
		return c.Provisioned
	}
	most := 0
	for _, p := range c.Schedule {
		most = max(most, p.Count)
	}
	return most
}

func (c Config) validateProvision() error {
	const op = "check function"
	most := ProvisionedMax
	if c.InstanceMax > 0 {
		most = min(most, c.InstanceMax)
	}
	if c.Provisioned < 0 || c.Provisioned > most {
		return Errorf(Invalid, op, "provisioned %d: use 0-%d", c.Provisioned, most)
	}
	if len(c.Schedule) > ScheduleMax {
		return Errorf(Invalid, op, "schedule has %d lines: use at most %d", len(c.Schedule), ScheduleMax)
	}
	for _, p := range c.Schedule {
		if _, _, _, ok := p.parse(); !ok {
			return Errorf(Invalid, op, "schedule at %q: use \"08:00\", \"Mon 08:00\" or \"Mon-Fri 08:00\", UTC", p.At)
		}
		if p.Count < 0 || p.Count > most {
			return Errorf(Invalid, op, "schedule at %q: count %d: use 0-%d", p.At, p.Count, most)
		}
	}
	return nil
}
