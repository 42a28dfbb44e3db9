"""gRPC services, each with grpc.health.v1 and server reflection.

`sglang` is the scheduler service of SGLang's gRPC mode over the simulated engine (`simulate --grpc-port`),
`lerobot` the service of LeRobot's asynchronous inference (`python -m inference_backend lerobot`). Their messages
are in the `.proto` files here, which `proto` reads by itself, so nothing is generated. What this needs is the extra
`grpc`; nobody imports it who was not asked for gRPC.
"""
