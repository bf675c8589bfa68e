package starling

import (
	"testing"
	"time"
)

func TestScheduleIsReadByTheWeek(t *testing.T) {
	c := Config{Provisioned: 1, Schedule: []Provision{{"Mon-Fri 08:00", 10}, {"Mon-Fri 20:30", 2}, {"Sat 00:00", 0}}}
	for at, want := range map[string]int{
		"2026-11-16T07:59:00Z": 0, // Monday, before the first line of the week
		"2026-11-16T08:00:00Z": 10, "2026-11-16T20:29:59Z": 10, "2026-11-16T20:30:00Z": 2, "2026-11-17T07:00:00Z": 2,
		"2026-11-20T23:59:00Z": 2, "2026-11-21T00:00:00Z": 0, "2026-11-22T12:00:00Z": 0,
		"2026-11-16T09:30:00+02:00": 0, "2026-11-16T10:30:00+02:00": 10,
	} {
		when, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.ProvisionedAt(when); got != want {
			t.Errorf("%s: %d, want %d", at, got, want)
		}
	}
	daily := Config{Schedule: []Provision{{"09:00", 3}}}
	if got := daily.ProvisionedAt(time.Unix(0, 0)); got != 3 {
		t.Errorf("a single line: %d, want 3 at all times", got)
	}
	if got := (&Config{Provisioned: 4}).ProvisionedAt(time.Now()); got != 4 {
		t.Errorf("no schedule: %d, want 4", got)
	}
}

func TestProvisionIsChecked(t *testing.T) {
	ok := Config{Runtime: Python311}.WithDefaults()
	ok.Schedule = []Provision{{"Fri-Mon 23:59", 1000}, {"00:00", 0}}
	if err := ok.Validate(); err != nil {
		t.Error(err)
	}
	for _, spoil := range []func(*Config){
		func(c *Config) { c.Provisioned = -1 }, func(c *Config) { c.Provisioned = 1001 },
		func(c *Config) { c.InstanceMax, c.Provisioned = 2, 3 }, func(c *Config) { c.Schedule = make([]Provision, 33) },
		func(c *Config) { c.Schedule = []Provision{{"8:00", 1}} }, func(c *Config) { c.Schedule = []Provision{{"24:00", 1}} },
		func(c *Config) { c.Schedule = []Provision{{"Mo 08:00", 1}} }, func(c *Config) { c.Schedule = []Provision{{"", 1}} },
		func(c *Config) { c.Schedule = []Provision{{"Mon 08:0x", 1}} }, func(c *Config) { c.Schedule = []Provision{{"08:00", -1}} },
	} {
		c := Config{Runtime: Python311}.WithDefaults()
		spoil(&c)
		if KindOf(c.Validate()) != Invalid {
			t.Errorf("provisioned %d, schedule %v pass", c.Provisioned, c.Schedule)
		}
	}
}
