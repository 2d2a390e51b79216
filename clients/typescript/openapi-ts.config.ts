import { defineConfig } from '@hey-api/openapi-ts';

// How `make sdk` generates src/generated.
export default defineConfig({
  input: '../../docs/openapi.json',
  output: 'src/generated',
  plugins: ['@hey-api/client-fetch', '@hey-api/typescript', '@hey-api/sdk'],
});
