package api

import (
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"starling"
	"starling/cluster"
	"starling/cluster/backup"
	"starling/frontend/auth"
)

// backupWrite bounds the wait for a reader to take one piece of a backup.
const backupWrite = 30 * time.Second

func (a *api) backup() {
	a.handle(&huma.Operation{OperationID: "back-up", Method: http.MethodGet, Path: "/v1/backup", Summary: "Back up the replicated state (admin)", Tags: []string{"cluster"},
		Description: "The whole replicated state as the leader has it now: partition map, accounts, keys (hashed), functions, members. It holds neither code packages nor the CA's private key.",
		Responses: map[string]*huma.Response{"200": {Description: "A backup file", Content: map[string]*huma.MediaType{
			"application/octet-stream": {Schema: &huma.Schema{Type: "string", Format: "binary"}}}}},
	}, a.sendBackup)
}

func (a *api) sendBackup(w http.ResponseWriter, r *http.Request, p auth.Principal) error {
	if err := p.MustAdmin(); err != nil {
		return err
	}
	if a.Backup == nil {
		return starling.Errorf(starling.Unavailable, "back up cluster", "this frontend takes no backups: ask another one")
	}
	rc := http.NewResponseController(w)
	var out *backup.Writer
	var end backup.End
	err := a.Backup(r.Context(), func(b cluster.Backup) error {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Cache-Control", "no-store")
		out = backup.NewWriter(w, backup.Header{Cluster: b.Cluster, Created: a.Now().Unix(), Index: b.Index, Leader: b.Leader, Size: b.Size, Authority: b.Authority})
		end = backup.NewEnd(b.StateHash, b.CatalogHash)
		return nil
	}, func(piece []byte) error {
		rc.SetWriteDeadline(time.Now().Add(backupWrite))
		return out.State(piece)
	})
	if out == nil {
		return outOfTime(err)
	}
	if err == nil {
		err = out.End(end)
	}
	if err != nil { // the status is out: a file without its end tells the reader
		a.Log.Warn("a backup was cut short", "error", err)
	}
	return nil
}
