package capture

import (
	"errors"
	"strings"
	"testing"
)

func TestMeansAreChosenByWhatWorks(t *testing.T) {
	const none = Means("")
	for _, c := range []struct {
		setting string
		work    []Means
		want    Means
		says    []string // in the refusal
	}{
		{setting: "auto", work: []Means{Lookup, TPROXY}, want: Lookup},
		{setting: "", work: []Means{Lookup, TPROXY}, want: Lookup},
		{setting: "auto", work: []Means{TPROXY}, want: TPROXY},
		{setting: "tproxy", work: []Means{Lookup, TPROXY}, want: TPROXY},
		{setting: "lookup", work: []Means{TPROXY}, want: none, says: []string{"BPF sk_lookup: lacking"}},
		{setting: "tproxy", work: []Means{Lookup}, want: none, says: []string{"nftables TPROXY: lacking"}},
		{setting: "auto", want: none, says: []string{"BPF sk_lookup: lacking", "nftables TPROXY: lacking"}},
		{setting: "iptables", work: []Means{Lookup, TPROXY}, want: none, says: []string{"auto, lookup or tproxy"}},
	} {
		got, err := choose(c.setting, func(m Means) error {
			for _, works := range c.work {
				if m == works {
					return nil
				}
			}
			return errors.New("lacking")
		})
		if got != c.want || (err == nil) != (c.want != none) {
			t.Errorf("%q where %v work: %q, %v", c.setting, c.work, got, err)
		}
		for _, word := range c.says {
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("%q where %v work: %v does not say %q", c.setting, c.work, err, word)
			}
		}
	}
}
