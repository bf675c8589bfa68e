// Package trace keeps what calls a node served, one row a call, in Parquet files that any data tool reads and that
// 'starling analyze' replays. It is the only importer of the Parquet library.
package trace

// A Call is one call that ended, or was refused. All durations are µs. The names of the columns are stable: they are
// only added to. No payload and no key is in it.
type Call struct {
	Start     int64  `parquet:"start,timestamp(microsecond),delta"` // when it came, Unix µs
	Account   string `parquet:"account,dict"`
	Function  string `parquet:"function,dict"`
	Version   uint64 `parquet:"version,dict"` // the number of its ID, in the cluster
	Wait      int64  `parquet:"wait"`         // its whole time less Run: for a slot, and on the way
	Run       int64  `parquet:"run"`          // in the function; 0 when it did not run
	Cold      bool   `parquet:"cold"`         // an instance was started for it
	Begin     int64  `parquet:"begin"`        // of a cold one: until there was a sandbox with the code
	Init      int64  `parquet:"init"`         // of a cold one: the function's own initialisation
	Outcome   string `parquet:"outcome,dict"` // "ok", "handled", "unhandled", or the kind of the error
	MemoryMiB int32  `parquet:"memory_mib,dict"`
	PeakMiB   int32  `parquet:"peak_mib,dict"` // of the instance so far; 0 when unknown
	Slots     int32  `parquet:"slots,dict"`    // calls one instance serves at once
}
