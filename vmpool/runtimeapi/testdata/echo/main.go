// Command echo is a function on the unmodified aws-lambda-go library, for the tests of vmpool/runtimeapi.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

type event struct {
	Do   string `json:"do"`
	N    int    `json:"n"`
	Text string `json:"text"`
}

// broken is a body that fails after its first bytes.
type broken struct{ read bool }

func (b *broken) Read(p []byte) (int, error) {
	if b.read {
		return 0, errors.New("half way")
	}
	b.read = true
	return copy(p, "begun"), nil
}

func handle(ctx context.Context, e event) (any, error) {
	c, _ := lambdacontext.FromContext(ctx)
	switch e.Do {
	case "context":
		deadline, _ := ctx.Deadline()
		return []any{c.AwsRequestID, c.InvokedFunctionArn, time.Until(deadline) > 0, c.ClientContext.Custom["a"], os.Getenv("AWS_LAMBDA_FUNCTION_NAME")}, nil
	case "fail":
		return nil, errors.New(e.Text)
	case "panic":
		panic(e.Text)
	case "exit":
		os.Exit(e.N)
	case "sleep":
		time.Sleep(time.Duration(e.N) * time.Millisecond)
	case "stream":
		return io.MultiReader(strings.NewReader("one "), strings.NewReader("two")), nil
	case "broken":
		return &broken{}, nil
	case "large":
		return strings.NewReader(strings.Repeat("x", e.N)), nil
	case "print":
		fmt.Println("printed", e.Text)
	}
	return json.RawMessage(fmt.Sprintf(`{"echo":%q}`, e.Text)), nil
}

func main() { lambda.StartWithOptions(handle, lambda.WithEnableSIGTERM()) }
