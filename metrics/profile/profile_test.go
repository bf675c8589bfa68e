package profile

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"starling"
)

func TestSketchIsBoundedAndNear(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var whole, left, right Sketch
	values := make([]float64, 100_000)
	for i := range values {
		values[i] = math.Exp(rng.Float64()*math.Log(1e8)) * 1e-5 // eight orders of magnitude, as run times have
		whole.Add(values[i], 1)
		if i%3 == 0 {
			left.Add(values[i], 1)
		} else {
			right.Add(values[i], 1)
		}
	}
	slices.Sort(values)
	left.Merge(&right)
	text, err := json.Marshal(whole)
	if err != nil || len(text) > 40*binsMax {
		t.Fatalf("%d bytes, %v", len(text), err)
	}
	var read Sketch
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	for _, q := range []float64{.1, .5, .9, .99, .999} {
		want := values[int(q*float64(len(values)-1))]
		got := whole.Quantile(q)
		if math.Abs(got/want-1) > accuracy+1e-9 {
			t.Errorf("q %v is %v, want %v within 2%%", q, got, want)
		}
		if left.Quantile(q) != got || math.Abs(read.Quantile(q)/got-1) > 1e-9 {
			t.Errorf("q %v: whole %v, merged %v, read %v", q, got, left.Quantile(q), read.Quantile(q))
		}
	}
	// However far apart the values are, the bins are bounded, and it is the high quantiles that stay.
	for e := range 200 {
		whole.Add(math.Pow(10, float64(e)/20-6), 1000)
	}
	if n := len(whole.bins()); n > binsMax {
		t.Errorf("%d bins", n)
	}
	if got := whole.Quantile(1); math.Abs(got/math.Pow(10, 199./20-6)-1) > accuracy+1e-9 {
		t.Errorf("the maximum is %v", got)
	}
}

func TestSketchRefusesWhatNoSketchWrites(t *testing.T) {
	for _, text := range []string{`{}`, `[[1]]`, `[[-1,1]]`, `[[1,0]]`, `[[1,1e300]]`, `[[1e300,1]]`, "[" + fmt.Sprint(bigList()) + "]"} {
		var s Sketch
		if err := json.Unmarshal([]byte(text), &s); err == nil {
			t.Errorf("%.20s is read as %v", text, s.bins())
		}
	}
	var s Sketch
	for _, v := range []float64{0, -1, math.NaN(), math.Inf(1)} {
		s.Add(v, 1)
		s.Add(1, v)
	}
	if s.Quantile(1) != 0 {
		t.Errorf("an unfit value was counted: %v", s.bins())
	}
}

func bigList() string {
	out := "[1,1]"
	for range binsMax {
		out += ",[1,1]"
	}
	return out
}

func FuzzSketch(f *testing.F) {
	f.Add([]byte(`[[0.001,5],[2,1]]`))
	f.Add([]byte(`[[1e-12,1e15],[1e15,1]]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var s Sketch
		if json.Unmarshal(text, &s) != nil {
			return
		}
		if n := len(s.bins()); n > binsMax {
			t.Errorf("%d bins", n)
		}
		if _, err := json.Marshal(s); err != nil {
			t.Error(err)
		}
	})
}

func TestTallyCountsCPUBetweenReadings(t *testing.T) {
	var y Tally
	call := func(n int) {
		for range n {
			y.Add(10 * time.Millisecond)
		}
	}
	call(1)
	y.Read(700*time.Millisecond, y.Reading()) // the initialisation and the first call: where counting begins
	call(4)
	old := y.Reading()
	call(2)
	y.Read(760*time.Millisecond, y.Reading())
	y.Read(740*time.Millisecond, old) // overtaken: its calls wait for the next reading
	got := y.Take(time.Second)
	if got.Calls != 7 || got.Run != 70*time.Millisecond || got.CPU != 60*time.Millisecond || got.CPUCalls != 2 || got.Active != time.Second {
		t.Errorf("%d calls, run %v, CPU %v over %d", got.Calls, got.Run, got.CPU, got.CPUCalls)
	}
	call(1)
	y.Read(800*time.Millisecond, y.Reading())
	if got := y.Take(0); got.Calls != 1 || got.CPU != 40*time.Millisecond || got.CPUCalls != 5 {
		t.Errorf("after a take: %d calls, CPU %v over %d", got.Calls, got.CPU, got.CPUCalls)
	}
	if n := testing.AllocsPerRun(1000, func() { y.Add(time.Millisecond) }); n != 0 {
		t.Errorf("a call allocates %v times", n)
	}
}

// A tally keeps 64 run times of any number; the profile must still know that a tenth of the calls is slow.
func TestProfileKnowsTheTailOfASample(t *testing.T) {
	b := NewBook(8)
	v := version(1, "f")
	for range 100 {
		var y Tally
		for i := range 1000 {
			y.Add(time.Duration(1+99*(i%10/9)) * time.Millisecond)
		}
		y.MemoryMax = 40 << 20
		y = y.Take(time.Second)
		b.Add(v, &y, time.Unix(5, 0))
	}
	p := b.Profiles("f")[0]
	if p.Calls != 100_000 || p.ActiveSeconds != 100 || p.MemoryMax != 40<<20 {
		t.Errorf("%+v", p)
	}
	if p50, p95 := p.Runs.Quantile(.5), p.Runs.Quantile(.95); math.Abs(p50/.001-1) > .03 || math.Abs(p95/.1-1) > .03 {
		t.Errorf("p50 %v, p95 %v", p50, p95)
	}
}

func version(id starling.VersionID, name starling.FunctionName) *starling.Version {
	return &starling.Version{ID: id, Function: starling.FunctionRef{Account: "a", Name: name}, Config: starling.Config{MemoryMiB: 256}}
}

func TestBookForgetsWhatWasCalledLeastLately(t *testing.T) {
	b := NewBook(2)
	add := func(id starling.VersionID) {
		var y Tally
		y.Add(time.Second)
		b.Add(version(id, starling.FunctionName(fmt.Sprint("f", id))), &y, time.Unix(int64(id), 0))
	}
	add(1)
	add(2)
	add(1)
	add(3)
	b.Add(version(4, "idle"), &Tally{}, time.Unix(9, 0)) // no call, no room taken
	got := b.Profiles("")
	if len(got) != 2 || got[0].Version != 1 || got[0].Calls != 2 || got[1].Version != 3 {
		t.Errorf("%+v", got)
	}
	if n, dropped := b.Size(); n != 2 || dropped != 1 {
		t.Errorf("%d versions, %d dropped", n, dropped)
	}
	all := Merge(got, b.Profiles("f3"))
	if len(all) != 2 || all[1].Calls != 2 || all[0].Calls != 2 || b.Profiles("f3")[0].Calls != 1 {
		t.Errorf("merged: %+v", all)
	}
}

func BenchmarkTallyAdd(b *testing.B) {
	var y Tally
	b.ReportAllocs()
	for b.Loop() {
		y.Add(time.Millisecond)
	}
}
