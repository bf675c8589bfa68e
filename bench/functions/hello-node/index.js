// Greets: {"name": "you"} -> {"message": "...", "requestId": "..."}.
exports.handler = async (event, context) => {
  const name = String(event.name ?? 'world').slice(0, 100);
  console.log(`greeting ${name}`);
  return { message: `Hello, ${name}, from Node ${process.version}.`, requestId: context.awsRequestId };
};
