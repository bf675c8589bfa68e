// Command sdkstream is a function on aws-lambda-go that streams, fails or panics, as its payload asks.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
)

func handle(_ context.Context, in struct{ Do string }) (io.Reader, error) {
	switch in.Do {
	case "fail":
		return nil, errors.New("no such order")
	case "panic":
		panic("out of orders")
	}
	r, w := io.Pipe()
	go func() {
		for i := range 3 {
			fmt.Fprintf(w, "part%d\n", i)
			time.Sleep(300 * time.Millisecond)
		}
		if in.Do == "break" {
			w.CloseWithError(errors.New("the source ran dry"))
			return
		}
		w.Close()
	}()
	return r, nil
}

func main() { lambda.Start(handle) }
